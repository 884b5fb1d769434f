"""Entries of the cache: made once, known by their checksums, made again when they are not what was written."""

from __future__ import annotations

from pathlib import Path

import pytest

from conf.errors import DataError
from data.cache import cached


def test_an_entry_is_made_once_and_again_when_it_was_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[bytes] = []

    def make() -> bytes:
        made.append(b"content")
        return b"content"

    for _ in range(2):
        assert cached(tmp_path, "key", ".x", make) == b"content"
    assert len(made) == 1
    (path,) = tmp_path.glob("key-*.x")
    for damage in (b"Content", b"conten", b""):
        path.write_bytes(damage)
        assert cached(tmp_path, "key", ".x", make) == b"content"
        assert capsys.readouterr().err.startswith(f"note: {path}: its content is not what was written; it is kept as")
        assert path.with_name(f"{path.name}.damaged").read_bytes() == damage
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match=r"it cannot be set aside \(Not a directory\); delete it"):
        cached(tmp_path, "key", ".x", make)
    path.rmdir()
    assert cached(tmp_path, "key", ".x", make) == b"content"
    assert len(made) == 5
    assert cached(tmp_path, "key2", ".x", lambda: b"other") == b"other"
    assert cached(tmp_path, "key", ".x", make) == b"content"
    assert len(made) == 5


def test_what_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        cached(tmp_path, "key", ".x", lambda: bytes(1 // 0))
    assert [path.name for path in tmp_path.iterdir()] == ["key.lock"]
