"""Locks and atomic writes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from conf.errors import DataError
from data import files
from data.files import locked, sha256_file, write_atomic


def test_a_failed_write_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_atomic(path, b"old")
    with pytest.raises(TypeError):
        write_atomic(path, 3)  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_a_cache_that_cannot_be_written_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(DataError, match=r"file.*cannot be written .* set data\.cache_dir"),
        locked(tmp_path / "file" / "l"),
    ):
        pass


def test_who_waits_for_a_lock_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_QUIET_S", 0.05)
    path, told = tmp_path / "l", ""
    with ThreadPoolExecutor() as pool:

        def wait() -> bool:
            with locked(path):
                return True

        with locked(path):
            waiting = pool.submit(wait)
            until = time.monotonic() + 10
            while not told and time.monotonic() < until:
                time.sleep(0.02)
                told = capsys.readouterr().err
            assert not waiting.done()
        assert waiting.result(timeout=10)
    assert told == f"note: {path}: another process holds this lock, and makes what is wanted here; waiting for it\n"


def test_a_rank_waits_for_its_peers_without_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_QUIET_S", 0.0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    path, entered = tmp_path / "l", []
    with ThreadPoolExecutor() as pool:

        def wait() -> None:
            with locked(path):
                entered.append(True)

        with locked(path):
            waiting = pool.submit(wait)
            time.sleep(0.2)
            assert not entered
        waiting.result(timeout=10)
    assert entered
    assert capsys.readouterr().err == ""


def test_a_pipe_has_no_checksum_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "s.tokens")
    with pytest.raises(OSError, match="no regular file"):
        sha256_file(tmp_path / "s.tokens")


def test_a_full_disk_is_told_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk: the system refuses the write in the same way."""
    code = (
        "import resource, pathlib; from data.files import write_atomic\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"write_atomic(pathlib.Path({str(tmp_path / 'x')!r}), b'x' * 5000)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "conf.errors.DataError" in done.stderr
    assert "x: cannot be written (File too large); needs room for 5,000 bytes: free some, or set" in done.stderr
    assert list(tmp_path.iterdir()) == []
