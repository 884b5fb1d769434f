"""Entries of the cache that are one file each: their names end in their checksums, and damaged ones are made again."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from conf.errors import DataError
from conf.safety.regular import read_regular
from data.files import locked, sha256_bytes, write_atomic
from data.notice import notice

_DIGITS = 32  # of the checksum


def cached(folder: Path, key: str, suffix: str, make: Callable[[], bytes]) -> bytes:
    """The content of entry `key`, from `make` where there is none or it is damaged. One process makes it, others wait.

    Raises what `make` raises, and DataError when the cache cannot be written.
    """
    with locked(folder / f"{key}.lock"):
        for path in sorted(folder.glob(f"{key}-*{suffix}")):
            content = _content(path)
            if content is not None and path.name == _name(key, suffix, content):
                return content
            set_aside(path, "its content is not what was written")
        content = make()
        write_atomic(folder / _name(key, suffix, content), content)
        return content


def set_aside(path: Path, reason: str) -> None:
    """Give a damaged file of the cache another name, if it is there, and tell it. Raises DataError when it cannot."""
    aside = path.with_name(f"{path.name}.damaged")
    kept = "was gone"
    if path.exists():
        try:
            os.replace(path, aside)
        except OSError as error:
            raise DataError(f"{path}: {reason}, and it cannot be set aside ({error.strerror}); delete it") from error
        kept = f"is kept as {aside.name}"
    notice(f"{path}: {reason}; it {kept} and is made again")


def _content(path: Path) -> bytes | None:
    try:
        return read_regular(path)
    except OSError:
        return None


def _name(key: str, suffix: str, content: bytes) -> str:
    return f"{key}-{sha256_bytes(content)[:_DIGITS]}{suffix}"
