"""Files that several processes share: locks, atomic writes and checksums."""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from conf.errors import DataError
from conf.safety.regular import open_regular
from conf.safety.writing import append_to, write_whole
from data.notice import notice

_QUIET_S = 1.0
_QUIET_RANK_S = 30.0  # of a rank: a peer makes what it waits for, and says so


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
        _wait_for(handle.fileno(), path)
        try:
            yield
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)


def _wait_for(handle: int, path: Path) -> None:
    """Take the lock, and tell it where that takes longer than others need for what is there already."""
    until = time.monotonic() + (_QUIET_RANK_S if "LOCAL_RANK" in os.environ else _QUIET_S)
    while time.monotonic() < until:
        with suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(0.02)
    notice(f"{path}: another process holds this lock, and makes what is wanted here; waiting for it")
    fcntl.flock(handle, fcntl.LOCK_EX)


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
