"""Shards are compared with their checksums before they are used: once per file and machine, several files at a time.

What was found whole is remembered in `data.cache_dir`/verified by size, times and inode of each file.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from conf.errors import DataError
from conf.safety.regular import read_regular
from conf.schema import DataConfig
from data.files import locked, sha256_bytes, sha256_file, write_atomic
from data.notice import Progress
from data.shards.shards import OFFSETS, ShardFile, ShardIndex, files_of
from data.sources.finite import cache_folder

_THREADS = min(8, os.cpu_count() or 1)  # hashing and reading leave Python's lock
_PROGRESS_S = 2.0
_CHUNK_TOKENS = 1 << 22
_State = list[int | str]


class Fault(NamedTuple):
    """A file that is not what was written."""

    path: Path
    text: str


def require_whole(folder: Path, index: ShardIndex, data: DataConfig, progress: Progress) -> None:
    """Raise DataError, naming the first file, unless every shard of a folder is what `pointsman prepare` wrote."""
    for fault in find_faults(folder, index, data, progress):
        raise DataError(
            f"{fault.path}: {fault.text}; restore it, or write the folder again with `pointsman prepare --out {folder}`"
        )


def find_faults(folder: Path, index: ShardIndex, data: DataConfig, progress: Progress) -> list[Fault]:
    """Every file of the shards of `index` that is missing, cut or changed, or holds ids that no tokenizer knows."""
    name = sha256_bytes(f"{socket.gethostname()} {folder.resolve()}".encode())[:32]
    with _memory(cache_folder(data) / "verified" / f"{name}.json") as seen:
        faults, unseen = [], []
        for file in (file for shard in index.shards for file in files_of(folder, shard, index.dtype)):
            state = _state(file)
            if state is None:
                found = f"has {file.path.stat().st_size:,} bytes" if file.path.is_file() else "is missing"
                faults.append(Fault(file.path, f"{found}, {file.size:,} were written"))
            elif seen.get(file.path.name) != state:
                unseen.append((file, state))
        for (file, state), text in zip(unseen, _contents(unseen, index.pieces, progress), strict=True):
            if text is None:
                seen[file.path.name] = state
            else:
                faults.append(Fault(file.path, text))
    return faults


@contextmanager
def _memory(path: Path) -> Iterator[dict[str, _State]]:
    """What was found whole before, to be added to; forgotten where it cannot be kept, which costs time only."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        yield {}
        return
    with locked(path.with_suffix(".lock")):
        try:
            read = json.loads(read_regular(path))
        except (OSError, ValueError, RecursionError):
            read = None
        before = read if isinstance(read, dict) else {}
        seen = dict(before)
        yield seen
        if seen != before:
            with suppress(DataError):
                write_atomic(path, json.dumps(seen).encode())


def _state(file: ShardFile) -> _State | None:
    """What changes when a file does; None when its size is wrong."""
    try:
        found = file.path.stat()
    except OSError:
        return None
    if found.st_size != file.size:
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, file.sha256]


def _contents(unseen: Sequence[tuple[ShardFile, _State]], pieces: int, progress: Progress) -> Iterator[str | None]:
    """What is wrong with the content of each file, in their order."""
    total, done, last = sum(file.size for file, _ in unseen), 0, time.monotonic()
    with ThreadPoolExecutor(_THREADS) as pool:
        for (file, _), text in zip(unseen, pool.map(lambda item: _fault_of(item[0], pieces), unseen), strict=True):
            done += file.size
            if time.monotonic() - last > _PROGRESS_S:
                last = time.monotonic()
                progress(f"checking shards: {done / 1e9:.1f} of {total / 1e9:.1f} GB")
            yield text


def _fault_of(file: ShardFile, pieces: int) -> str | None:
    try:
        if sha256_file(file.path) != file.sha256:
            return "its sha256 is not the recorded one"
        return _wrong_offsets(file) if file.dtype == OFFSETS else _unknown_id(file, pieces)
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _unknown_id(file: ShardFile, pieces: int) -> str | None:
    for start in range(0, file.items, _CHUNK_TOKENS):
        wanted = min(_CHUNK_TOKENS, file.items - start)
        tokens = np.fromfile(file.path, dtype=file.dtype, count=wanted, offset=start * np.dtype(file.dtype).itemsize)
        if tokens.max() >= pieces:
            place = int(np.argmax(tokens >= pieces))
            return f"token {start + place:,} has id {tokens[place]}, outside the tokenizer's {pieces:,} pieces"
    return None


def _wrong_offsets(file: ShardFile) -> str | None:
    offsets = np.fromfile(file.path, dtype=file.dtype)
    whole = offsets[0] == 0 and offsets[-1] == file.covers and not (np.diff(offsets) < 0).any()
    return None if whole else f"its offsets do not run from 0 to {file.covers:,}"
