import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from conf.errors import CheckpointError, ConfigError
from parallel.engine.protocol import StateTensor
from parallel.layers.sharding import Shard
from parallel.mesh.axes import single_process
from tests.harness import run_ranks, run_ranks_raw
from tests.trainer.checkpoint import toy
from trainer.checkpoint import files
from trainer.checkpoint.reader import CheckpointReader
from trainer.checkpoint.store import CheckpointStore
from trainer.checkpoint.verify import verify

LAYOUT = (1, 2, None)  # of the two-rank tests


def reading(root: Path) -> CheckpointStore:
    return CheckpointStore(root, single_process(), lock=False)


def names(root: Path) -> list[str]:
    return [path.name for path in reading(root).list()]


# ------------------------------------------------------------------------------------------------------------ kills


def _save_with_fault(rank: int, world: int, root: Path, bad_rank: int, point: str, action: str) -> None:
    mesh = toy.groups_for(LAYOUT)
    toy.save_steps(root, mesh, (1,))
    if rank == bad_rank:
        toy.fault_at(point, action)
    toy.save_steps(root, mesh, (2,))


def _resume(rank: int, world: int, root: Path) -> tuple[str, bool]:
    mesh = toy.groups_for(LAYOUT)
    store = CheckpointStore(root, mesh)
    path = store.latest_valid()
    assert path is not None
    reader = CheckpointReader(path)
    equal = all(
        torch.equal(reader.read("master", n, s), toy.logical("master", n, reader.step)[s.slices])
        for n, s in toy.shards_of(mesh).items()
    )
    store.close()
    return path.name, equal


@pytest.mark.parametrize(
    ("point", "bad_rank", "chosen"),
    [("mid_save", 1, 1), ("mid_save", 0, 1), ("before_commit", 0, 1), ("after_commit", 0, 2), ("after_commit", 1, 2)],
)
def test_kill(tmp_path: Path, point: str, bad_rank: int, chosen: int) -> None:
    results = run_ranks_raw(_save_with_fault, 2, tmp_path, bad_rank, point, "kill", timeout_s=5, deadline_s=60)
    assert results[bad_rank].exit_code == -9
    assert not any(r.hung for r in results)
    assert run_ranks(_resume, 2, tmp_path) == [(f"step_{chosen:08d}", True)] * 2
    assert not list(tmp_path.glob(".step_*")), "what the kill left behind is cleaned"


# -------------------------------------------------------------------------------------------------------- corruption


def _flip(path: Path, where: str) -> None:
    raw = bytearray(path.read_bytes())
    raw[{"first": 0, "middle": len(raw) // 2, "last": len(raw) - 1}[where]] ^= 0x10
    path.write_bytes(raw)


def _truncate(path: Path, where: str) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def _delete(path: Path, where: str) -> None:
    path.unlink()


DAMAGE = [(_flip, "first"), (_flip, "middle"), (_flip, "last"), (_truncate, ""), (_delete, "")]


@pytest.mark.parametrize("pattern", ["*.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize(("damage", "where"), DAMAGE)
def test_damage_is_named_and_passed_over(
    tmp_path: Path, pattern: str, damage, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    toy.save_alone(tmp_path, 1, 2)
    victim = next((tmp_path / "step_00000002").glob(pattern))
    damage(victim, where)
    problems = verify(victim.parent)
    assert len(problems) == 1
    assert victim.name in problems[0]
    chosen = reading(tmp_path).latest_valid()
    assert chosen is not None
    assert chosen.name == "step_00000001"
    assert "PASSED OVER: step_00000002" in caplog.text
    assert victim.name in caplog.text


def _fall_back(rank: int, world: int, root: Path) -> str:
    path = CheckpointStore(root, toy.groups_for((1, 1, None)), lock=False).latest_valid()
    assert path is not None
    return path.name


@pytest.mark.parametrize("pattern", ["*.safetensors", "state.json"])
def test_ranks_share_the_reading_and_agree(tmp_path: Path, pattern: str) -> None:
    toy.save_alone(tmp_path, 1, 2)
    _flip(next((tmp_path / "step_00000002").glob(pattern)), "middle")
    assert run_ranks(_fall_back, 2, tmp_path) == ["step_00000001"] * 2


def test_all_damaged(tmp_path: Path) -> None:
    toy.save_alone(tmp_path, 1, 2)
    _flip(tmp_path / "step_00000001" / "state.json", "last")
    _delete(tmp_path / "step_00000002" / "manifest.json", "")
    with pytest.raises(CheckpointError, match=r"(?s)step_00000002: .*manifest\.json.*step_00000001: .*state\.json"):
        reading(tmp_path).latest_valid()


def test_none_at_all(tmp_path: Path) -> None:
    store = reading(tmp_path)
    assert store.latest_valid() is None
    store.require_empty()
    with pytest.raises(CheckpointError, match=r"train\.resume=required"):
        store.raise_missing()


def test_a_fresh_start_over_checkpoints_is_refused(tmp_path: Path) -> None:
    toy.save_alone(tmp_path, 1)
    with pytest.raises(ConfigError, match="step_00000001"):
        reading(tmp_path).require_empty()


def test_a_renamed_checkpoint_is_damaged(tmp_path: Path) -> None:
    toy.save_alone(tmp_path, 1)
    (tmp_path / "step_00000001").rename(tmp_path / "step_00000009")
    assert "step 1" in verify(tmp_path / "step_00000009")[0]


# ------------------------------------------------------------------------------------------------ ranks and choosing


def _stale_listing(rank: int, world: int, root: Path) -> str:
    store = CheckpointStore(root, toy.groups_for((1, 1, None)), lock=False)
    if rank == 1:
        store.list = lambda: [root / "step_00000001"]  # type: ignore[method-assign]
    path = store.latest_valid()
    assert path is not None
    return path.name


def test_rank_zero_decides(tmp_path: Path) -> None:
    toy.save_alone(tmp_path, 1, 2)
    assert run_ranks(_stale_listing, 2, tmp_path) == ["step_00000002"] * 2


def _other_disk(rank: int, world: int, root: Path) -> str:
    store = CheckpointStore(root if rank == 0 else root / "elsewhere", toy.groups_for((1, 1, None)), lock=False)
    with pytest.raises(CheckpointError, match=r"ranks \[1\] do not see"):
        store.latest_valid()
    return "refused"


def test_ranks_that_do_not_share_the_disk_are_refused(tmp_path: Path) -> None:
    toy.save_alone(tmp_path, 1)
    assert run_ranks(_other_disk, 2, tmp_path) == ["refused"] * 2


# ----------------------------------------------------------------------------------------------------- failing saves


def _full_disk(rank: int, world: int, root: Path) -> list:
    mesh = toy.groups_for(LAYOUT)
    toy.save_steps(root, mesh, (1,))
    store = CheckpointStore(root, mesh, max_failures=2)
    shards, seen = toy.shards_of(mesh), []
    if rank == 1:
        toy.fault_at("mid_save", "enospc")
    for step in (2, 3):
        store.save(step, toy.owned(mesh, step), shards, {"step": step})
        with pytest.raises(CheckpointError, match=r"rank 1: .*No space left"):
            store.wait()
        seen.append((store.failed, store.failed_in_a_row))
    with pytest.raises(CheckpointError, match="3 saves in a row"):
        store.save(4, toy.owned(mesh, 4), shards, {"step": 4})
    toy.set_fault_hook(None)  # somebody has made room
    store.save(5, toy.owned(mesh, 5), shards, {"step": 5})
    assert store.wait() is not None
    seen.append((store.failed, store.failed_in_a_row))
    store.close()
    return seen


def test_a_full_disk_on_one_rank_fails_the_save_everywhere(tmp_path: Path) -> None:
    assert run_ranks(_full_disk, 2, tmp_path) == [[(1, 1), (2, 2), (3, 0)]] * 2
    assert names(tmp_path) == ["step_00000005", "step_00000001"]
    assert verify(tmp_path / "step_00000001") == verify(tmp_path / "step_00000005") == []
    assert not list(tmp_path.glob(".step_*"))


def _recover(rank: int, world: int, root: Path) -> tuple:
    """A failed save is seen by `poll` within a step and forgotten after a good one."""
    mesh = toy.groups_for((1, 1, None))
    store = CheckpointStore(root, mesh)
    shards = toy.shards_of(mesh)
    if rank == 1:
        toy.fault_at("mid_save", "enospc")
    store.save(1, toy.owned(mesh, 1), shards, {})
    result = None
    while result is None:
        time.sleep(0.01)
        result = store.poll()
    toy.set_fault_hook(None)
    store.save(2, toy.owned(mesh, 2), shards, {})
    good = store.wait()
    assert good is not None
    store.close()
    return result.step, result.path, str(result.error), good.step, store.failed, store.failed_in_a_row


def test_a_failed_background_save_is_reported_once(tmp_path: Path) -> None:
    for step, path, error, good_step, failed, in_a_row in run_ranks(_recover, 2, tmp_path):
        assert (step, path, good_step, failed, in_a_row) == (1, None, 2, 1, 0)
        assert "No space left" in error
    assert names(tmp_path) == ["step_00000002"]


def _collide(rank: int, world: int, root: Path, how: str) -> str:
    mesh = toy.groups_for((1, 1, None))
    store = CheckpointStore(root, mesh)
    shard = Shard(global_shape=(4,), offsets=(2 * rank if how == "gap" else 0,), local_shape=(2,))
    value = torch.full((2,), float(rank))
    given = [] if how == "gap" and rank == 1 else [StateTensor(name="experts.0", kind="master", value=value)]
    if how == "unknown" and rank == 1:
        given = [StateTensor(name="other", kind="master", value=value)]
    store.save(1, iter(given), {"experts.0": shard}, {})
    with pytest.raises(CheckpointError) as error:
        store.wait()
    store.close()
    return str(error.value)


def test_a_state_that_is_not_json_is_refused(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, single_process())
    store.save(1, [], {}, {"path": tmp_path})
    with pytest.raises(CheckpointError, match="not JSON serializable"):
        store.wait()
    store.close()


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("same name", "master/experts.0: ranks 0 and 1 hold different values"),
        ("gap", "master/experts.0: no rank gave the part at [2]"),
        ("unknown", "rank 1: master/other: is the state of no parameter"),
    ],
)
def test_pieces_that_do_not_fit_are_refused_on_all_ranks(tmp_path: Path, how: str, text: str) -> None:
    for message in run_ranks(_collide, 2, tmp_path, how):
        assert text in message
    assert names(tmp_path) == []


# ------------------------------------------------------------------------------------------------- saving and keeping


def _overlap(rank: int, world: int, root: Path, steps: int) -> int:
    mesh = toy.groups_for((2, 1, None))
    store = CheckpointStore(root, mesh, keep_last=2)
    shards = toy.shards_of(mesh)
    value = torch.ones(64)
    reported = 0
    for step in range(1, steps + 1):
        store.save(step, toy.owned(mesh, step), shards, {"step": step})
        for _ in range(3):
            dist.all_reduce(value)
            dist.barrier(group=mesh.control.group)
            value /= world
        reported += store.poll() is not None
    store.wait()
    store.close()
    return reported


def test_saving_overlaps_the_steps_collectives(tmp_path: Path) -> None:
    run_ranks(_overlap, 2, tmp_path, 50, deadline_s=20)
    assert names(tmp_path) == ["step_00000050", "step_00000049"]
    assert verify(tmp_path / "step_00000050") == []


def test_retention_keeps_the_last_and_every_so_many(tmp_path: Path) -> None:
    toy.save_alone(tmp_path, *range(1, 9), keep_last=2, keep_every=3)
    assert [files.step_of(tmp_path / name) for name in names(tmp_path)] == [8, 7, 6, 3]


def test_the_values_are_those_at_the_time_of_the_call(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, single_process())
    value = torch.ones(3)
    shards = {"w": Shard(global_shape=(3,), offsets=(0,), local_shape=(3,))}
    store.save(1, [StateTensor(name="w", kind="master", value=value)], shards, {})
    value.zero_()
    store.wait()
    store.close()
    assert CheckpointReader(tmp_path / "step_00000001").read("master", "w").tolist() == [1, 1, 1]


def test_a_step_saved_again_replaces_the_broken_one(tmp_path: Path) -> None:
    toy.save_alone(tmp_path, 1, 2)
    _flip(tmp_path / "step_00000002" / "state.json", "last")
    toy.save_alone(tmp_path, 2)
    assert verify(tmp_path / "step_00000002") == []
    assert names(tmp_path) == ["step_00000002", "step_00000001"]


def test_files_are_split_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.checkpoint.storage.FILE_BYTES", 1000)
    toy.save_alone(tmp_path, 1)
    folder = tmp_path / "step_00000001"
    sizes = [path.stat().st_size for path in folder.glob("*.safetensors")]
    assert len(sizes) > 3
    assert verify(folder) == []
    assert torch.equal(CheckpointReader(folder).read("exp_avg", "wo"), toy.logical("exp_avg", "wo", 1))


def _two_jobs(rank: int, world: int, root: Path, gate: Path) -> str:
    """Two jobs of one process each, no process group between them."""
    if rank == 1:
        while not gate.exists():
            time.sleep(0.01)
        with pytest.raises(ConfigError) as error:
            CheckpointStore(root, single_process())
        gate.unlink()
        return str(error.value)
    store = CheckpointStore(root, single_process())
    gate.touch()
    while gate.exists():
        time.sleep(0.01)
    store.close()
    return "held"


def test_two_jobs_do_not_share_a_directory(tmp_path: Path) -> None:
    held, refused = run_ranks(_two_jobs, 2, tmp_path / "checkpoints", tmp_path / "gate", backend=None, deadline_s=20)
    assert held == "held"
    assert "no other job writes to" in refused
    assert '"pid"' in refused
