"""Files that several processes share: locks, atomic writes and checksums."""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conf.errors import DataError
from conf.safety.regular import open_regular
from conf.safety.writing import append_to, write_whole


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path` (made if missing). The kernel drops it when the process dies.

    Raises:
        DataError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = append_to(path)
    except OSError as error:
        raise DataError(
            f"{path.parent}: cannot be written ({error.strerror}); set data.cache_dir (or POINTSMAN_CACHE) or --out to "
            "a directory of yours"
        ) from error
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)


def write_atomic(path: Path, content: bytes) -> None:
    """Write `path` so that it holds either its old or its whole new content, also after a kill or a power cut.

    Raises:
        DataError: it cannot be written, for example because the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content, durable=True)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror}); needs room for {len(content):,} bytes: free some, or set "
            "data.cache_dir (or POINTSMAN_CACHE) or --out to a directory elsewhere"
        ) from error


def sha256_bytes(content: bytes) -> str:
    """Hexadecimal sha256."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path) -> str:
    """Hexadecimal sha256 of a file. Raises OSError as `open_regular`."""
    with open_regular(path) as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
