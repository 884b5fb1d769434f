from pathlib import Path

import pytest
import torch

from conf.errors import CheckpointError, ConfigError
from parallel.layers.sharding import Shard
from parallel.mesh.axes import single_process
from tests.harness import run_ranks
from tests.trainer.checkpoint import toy
from trainer.checkpoint.reader import CheckpointReader, check_fingerprints, load_weights

LAYOUTS = [(1, 1, None), (2, 1, None), (1, 2, None), (1, 4, None), (2, 2, None), (4, 1, None), (2, 2, 1), (2, 4, 1)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Step 3, written by four ranks at tp 2, ep 2."""
    root = tmp_path_factory.mktemp("run")
    run_ranks(_save, 4, root, (2, 2, None))
    return root / "step_00000003"


def _save(rank: int, world: int, root: Path, layout: tuple) -> None:
    toy.save_steps(root, toy.groups_for(layout), (3,))


def _read_all(rank: int, world: int, path: Path, layouts: list) -> int:
    compared = 0
    for layout in layouts:
        mesh = toy.groups_for(layout)
        shards = toy.shards_of(mesh)
        reader = CheckpointReader(path)
        reader.check_names(shards)
        read = reader.for_engine(shards)
        for name, shard in shards.items():
            for kind in toy.KINDS:
                value = read(name, kind)
                assert value is not None
                assert torch.equal(value, toy.logical(kind, name, 3)[shard.slices]), (layout, kind, name)
                compared += 1
        row = read("wi", "row")
        assert row is not None
        assert torch.equal(row, toy.logical("row", "wi", 3)[tuple(shards["wi"].slices[d] for d in toy.ROWS)])
        assert read("norm", "row") is None
        module = toy.Toy(mesh).bfloat16()
        load_weights(module, reader, mesh)
        want = toy.logical("master", "query", 3)[shards["query"].slices].bfloat16()
        assert torch.equal(module.query, want)
    return compared


def test_any_layout_reads_exactly_what_another_wrote(saved: Path) -> None:
    assert run_ranks(_read_all, 4, saved, LAYOUTS) == [len(LAYOUTS) * len(toy.LOGICAL) * len(toy.KINDS)] * 4


def test_every_layout_writes_what_one_process_reads(tmp_path: Path) -> None:
    for i, layout in enumerate([(1, 1, None), (4, 1, None), (2, 4, 1)]):
        root = tmp_path / str(i)
        run_ranks(_save, 4, root, layout)
        assert _read_all(0, 1, root / "step_00000003", [(1, 1, None)]) == len(toy.LOGICAL) * len(toy.KINDS)


def test_one_process_writes_what_four_ranks_read(tmp_path: Path) -> None:
    toy.save_alone(tmp_path, 3)
    run_ranks(_read_all, 4, tmp_path / "step_00000003", [(2, 2, None)])


def test_what_it_holds(saved: Path) -> None:
    reader = CheckpointReader(saved)
    assert reader.state == {"step": 3}
    assert reader.step == 3
    assert reader.kinds == ("exp_avg", "exp_avg_sq", "master", "row")
    assert reader.names("master") == tuple(sorted(toy.LOGICAL))
    assert reader.names("row") == ("wi",)
    steps = reader.for_engine({})("step", "step")
    assert steps is not None
    assert steps.item() == 3


def test_any_rectangle(saved: Path) -> None:
    """Slices that start and end inside chunks."""
    reader, whole = CheckpointReader(saved), toy.logical("master", "wi", 3)
    assert torch.equal(reader.read("master", "wi"), whole)
    draw = torch.Generator().manual_seed(0)
    for _ in range(30):
        low = [int(torch.randint(n, (1,), generator=draw)) for n in whole.shape]
        size = [1 + int(torch.randint(n - o, (1,), generator=draw)) for n, o in zip(whole.shape, low, strict=True)]
        shard = Shard(global_shape=tuple(whole.shape), offsets=tuple(low), local_shape=tuple(size))
        assert torch.equal(reader.read("master", "wi", shard), whole[shard.slices])


def test_no_pickle_on_disk(saved: Path) -> None:
    suffixes = {path.suffix for path in saved.iterdir()}
    assert suffixes == {".json", ".safetensors"}


def test_each_piece_is_written_once(saved: Path) -> None:
    """All four ranks could have written the norm; one did."""
    manifest = (saved / "manifest.json").read_text()
    assert manifest.count('"master/norm"') == 1
    values = sum(toy.logical("master", name, 3).numel() for name in toy.LOGICAL) * len(toy.KINDS)
    values += toy.logical("row", "wi", 3).numel()
    size = sum(path.stat().st_size for path in saved.glob("*.safetensors"))
    assert 4 * values <= size < 4 * values + 4 * 8000


def test_names_that_do_not_fit_are_all_listed(saved: Path) -> None:
    shards = toy.shards_of(single_process())
    del shards["norm"]
    shards["norm.weight"] = Shard(global_shape=(4,), offsets=(0,), local_shape=(4,))
    shards["query"] = Shard(global_shape=(8, 5), offsets=(0, 0), local_shape=(8, 5))
    with pytest.raises(CheckpointError) as error:
        CheckpointReader(saved).check_names(shards)
    text = str(error.value)
    assert "missing: norm.weight" in text
    assert "missing: every moment of norm.weight" in text
    assert "unexpected: norm\n" in text
    assert "query: shape [8, 4], the model needs [8, 5]" in text
    assert "wi" not in text.replace(str(saved), "")


def test_a_missing_tensor_and_a_wrong_shape_are_refused(saved: Path) -> None:
    reader = CheckpointReader(saved)
    with pytest.raises(CheckpointError, match="holds no master of nothing"):
        reader.read("master", "nothing")
    with pytest.raises(CheckpointError, match=r"shape \[4\], the model needs \[6\]"):
        reader.read("master", "norm", Shard(global_shape=(6,), offsets=(0,), local_shape=(6,)))


def test_a_damaged_file_is_refused_when_read(tmp_path: Path) -> None:
    toy.save_alone(tmp_path, 3)
    folder = tmp_path / "step_00000003"
    shard = next(folder.glob("*.safetensors"))
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(CheckpointError, match=shard.name):
        CheckpointReader(folder).read("master", "norm")
    (folder / "state.json").write_text('{"step": 4}')
    with pytest.raises(CheckpointError, match=r"state\.json"):
        CheckpointReader(folder)


def test_fingerprints() -> None:
    saved, now = {"tokenizer": "aa", "data": "bb"}, {"tokenizer": "aa", "data": "cc", "split": "dd"}
    assert check_fingerprints(saved, dict(saved)) == []
    with pytest.raises(ConfigError, match=r"data: the checkpoint has bb, this run has cc; split: .*none.*dd"):
        check_fingerprints(saved, now)
    assert len(check_fingerprints(saved, now, allow=True)) == 2
