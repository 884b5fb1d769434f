"""Files are written whole, in the place of a link and never through it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from conf.safety.writing import append_to, open_in_place, write_whole


def test_a_file_has_its_old_or_its_new_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a"
    write_whole(file, "old")
    write_whole(file, b"new", durable=True)
    assert file.read_bytes() == b"new"
    assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~_umask()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        write_whole(file, "newer")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert file.read_bytes() == b"new"


def test_a_folder_in_the_place_of_a_file_is_named_by_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        write_whole(tmp_path / "a", "new")
    assert caught.value.filename == str(tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_is_replaced_or_refused_and_its_target_left_alone(tmp_path: Path, dangling: bool) -> None:
    target, file = tmp_path / "target", tmp_path / "file"
    if not dangling:
        target.write_text("precious")
    file.symlink_to(target)
    for flags in (os.O_WRONLY | os.O_CREAT | os.O_TRUNC, os.O_RDWR | os.O_CREAT):
        with pytest.raises(OSError, match="is a symbolic link, which is not written through; move it away"):
            open_in_place(file, flags)
    with pytest.raises(OSError, match="symbolic link"):
        append_to(file)
    write_whole(file, "ours")
    assert not file.is_symlink()
    assert target.exists() is not dangling
    assert dangling or target.read_text() == "precious"


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for flags in (os.O_WRONLY, os.O_RDWR):
        with pytest.raises(OSError, match=r"is a pipe|is not a plain file"):
            open_in_place(tmp_path / "pipe", flags | os.O_CREAT)


def test_appending_adds_at_the_end(tmp_path: Path) -> None:
    for word in (b"one", b"two"):
        with append_to(tmp_path / "log") as log:
            log.write(word)
    assert (tmp_path / "log").read_bytes() == b"onetwo"
