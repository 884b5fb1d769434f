"""Locks and atomic writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from conf.errors import DataError
from data.files import locked, write_atomic


def test_a_failed_write_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_atomic(path, b"old")
    with pytest.raises(TypeError):
        write_atomic(path, "not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_a_cache_that_cannot_be_written_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(DataError, match=r"file.*cannot be written .* set data\.cache_dir"),
        locked(tmp_path / "file" / "l"),
    ):
        pass
