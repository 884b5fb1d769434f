import multiprocessing
from pathlib import Path

import pytest

from conf.errors import ConfigError
from trainer.checkpoint import files


def test_committed_are_listed_newest_first(tmp_path: Path) -> None:
    for name in ("step_00000002", "step_00000010", ".step_00000011.saving", "step_2", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "step_00000099").write_text("a file")
    assert [files.step_of(p) for p in files.committed(tmp_path)] == [10, 2]
    assert files.committed(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("steps", "newest", "last", "every", "given_up"),
    [
        ([10, 20, 30], 30, 2, None, [10]),
        ([10, 20, 30, 40], 40, 1, 20, [30, 10]),
        ([10, 20, 30, 90], 30, 2, None, [10]),  # 90 lies in a future that was left
        ([10, 20], 20, 0, None, [10]),  # never the one just written
        ([10, 20], 20, 5, None, []),
    ],
)
def test_retention(steps: list[int], newest: int, last: int, every: int | None, given_up: list[int]) -> None:
    assert files.superseded(steps, newest=newest, keep_last=last, keep_every=every) == given_up


def test_what_was_interrupted_is_removed_and_nothing_else(tmp_path: Path) -> None:
    stale = [".step_00000001.saving", ".step_00000002.deleting"]
    for name in [*stale, "step_00000003", ".cache"]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    assert files.remove_uncommitted(tmp_path) == stale
    assert sorted(p.name for p in tmp_path.iterdir()) == [".cache", "step_00000003"]


def test_remove_renames_before_it_deletes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = files.step_folder(tmp_path, 5)
    folder.mkdir()

    def killed(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise KeyboardInterrupt

    monkeypatch.setattr(files.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        files.remove(folder)
    assert files.committed(tmp_path) == []
    monkeypatch.undo()
    assert files.remove_uncommitted(tmp_path) == [".step_00000005.deleting"]


def _try_lock(root: str, queue: "multiprocessing.Queue[str]") -> None:
    try:
        files.FolderLock(Path(root)).release()
        queue.put("taken")
    except ConfigError as error:
        queue.put(str(error))


def _second_job(root: Path) -> str:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_try_lock, args=(str(root), queue))
    child.start()
    answer = queue.get(timeout=20)
    child.join()
    return answer


def test_a_second_job_is_refused_and_told_the_owner(tmp_path: Path) -> None:
    lock = files.FolderLock(tmp_path)
    answer = _second_job(tmp_path)
    assert "no other job" in answer
    assert f'"pid": {multiprocessing.current_process().pid}' in answer
    lock.release()
    assert _second_job(tmp_path) == "taken"
