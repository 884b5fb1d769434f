"""Documents to tokenised shards: in several processes, resumable, the same bytes whatever the number of processes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np

from conf.errors import ConfigError, DataError
from conf.reading.paths import user_path
from conf.schema import DataConfig, RunConfig
from conf.sources import SOURCES
from data.cache import set_aside
from data.children import Child
from data.files import locked, sha256_bytes, sha256_file
from data.notice import Progress, silent
from data.shards.blocks import Block, blocks_of, tokenize_block
from data.shards.shards import (
    FORMAT,
    INDEX_NAME,
    TOKENIZER_NAME,
    ShardIndex,
    ShardInfo,
    read_index,
    token_dtype,
    write_index,
)
from data.shards.unknown import unknown_note
from data.shards.verify import Fault, find_faults, require_whole
from data.sources.finite import SPLITS, FiniteSource, cache_folder
from data.sources.texts import skipped_note
from data.streams.held_out import stream_validation
from data.streams.stream_tokenizer import stream_tokenizer
from data.text.scan import Scan, scan_source, scanned_documents, tokenizer_for
from data.text.tokenizer import Tokenizer

_MIN_SHARD_BYTES = 2 << 20
_MAX_SHARD_BYTES = 64 << 20
_SHARDS_WANTED = 64


class Prepared(NamedTuple):
    """A directory of shards and the tokenizer they were made with."""

    folder: Path
    tokenizer: Tokenizer
    notes: tuple[str, ...] = ()  # what a person should know about the text


def prepare_data(cfg: RunConfig, *, progress: Progress = silent) -> None:
    """Make what training needs before ranks start: tokenizer and shards in the cache (hub: tokenizer, validation).

    Does nothing when it is all there. Safe in several processes and jobs at once.

    Raises:
        DataError: the text cannot be read or tokenised; the text names the file and a fix.
    """
    kind = SOURCES[cfg.data.source].kind
    if kind == "stream":
        tokenizer = stream_tokenizer(cfg.data, progress=progress)
        stream_validation(cfg, tokenizer, progress=progress)
    elif kind == "shards":
        check_folders(cfg.data, progress=progress)
    else:
        prepare_finite(cfg.data, out=None, progress=progress)


def prepare_finite(data: DataConfig, *, out: Path | None, progress: Progress = silent) -> Prepared:
    """Shards of a finite source in `out`, or in the cache when `out` is None."""
    source = FiniteSource(data)
    scan = scan_source(source, data, progress=progress)
    tokenizer = tokenizer_for(source, scan, data, progress=progress)
    folder = (
        out or cache_folder(data) / "shards" / sha256_bytes(f"{scan.fingerprint} {tokenizer.fingerprint}".encode())[:32]
    )
    if out is not None:
        _check_out(out, tokenizer)
    with locked(folder / ".lock"):
        if not _is_complete(folder, scan, tokenizer, data, progress, mends=out is None):
            for leftover in folder.glob(".*.tmp"):  # of a killed run
                leftover.unlink(missing_ok=True)
            _write_shards(folder, source, scan, tokenizer, data.prepare_workers, progress)
            require_whole(folder, read_index(folder), data, progress)
    notes = [skipped_note(scan.bad_rows, scan.first_bad_row)] if scan.bad_rows else []
    if unknown := unknown_note(read_index(folder), data):
        notes.append(unknown)
    return Prepared(folder, tokenizer, tuple(notes))


def _check_out(out: Path, tokenizer: Tokenizer) -> None:
    """Raise ConfigError where a tokenizer would be replaced that no shards were made with: a run's, say."""
    model = out / TOKENIZER_NAME
    if not model.exists() or (out / INDEX_NAME).exists() or any(out.glob("*.tokens")):
        return
    if sha256_file(model) != tokenizer.fingerprint:
        needs = f"a folder without another {TOKENIZER_NAME}, which would be replaced"
        raise ConfigError("--out", got=str(out), needs=needs, hint="--out shards")


def check_folders(data: DataConfig, *, progress: Progress = silent) -> tuple[Path, ...]:
    """The directories of data=shards. Raises DataError when one is not what was written; nothing of it is changed."""
    folders = tuple(map(user_path, data.files))
    for folder in folders:
        require_whole(folder, read_index(folder), data, progress)
    return folders


def _is_complete(
    folder: Path, scan: Scan, tokenizer: Tokenizer, data: DataConfig, progress: Progress, *, mends: bool
) -> bool:
    """Whether everything is there and whole. What is damaged is set aside, to be made again.

    An index that cannot be read is nobody's but the cache's to set aside (`mends`); elsewhere DataError is raised.
    """
    path = folder / INDEX_NAME
    if not path.is_file():
        return False
    try:
        index = read_index(folder)
    except DataError as error:
        if not mends:
            raise DataError(f"{error}, into another directory or after deleting {path}") from error
        set_aside(path, "its content is not what was written")
        return False
    if (index.format, index.source, index.tokenizer) != (FORMAT, scan.fingerprint, tokenizer.fingerprint):
        path.unlink()  # the text or the tokenizer changed: only shards of equal text are kept
        return False
    faults = find_faults(folder, index, data, progress)
    model = folder / TOKENIZER_NAME
    if not model.is_file() or sha256_file(model) != tokenizer.fingerprint:
        faults.append(Fault(model, "its sha256 is not the recorded one"))
    for fault in faults:
        set_aside(fault.path, fault.text)
    if faults:
        path.unlink()
    return not faults


def _write_shards(
    folder: Path, source: FiniteSource, scan: Scan, tokenizer: Tokenizer, workers: int, progress: Progress
) -> None:
    total = scan.train_bytes + scan.validation_bytes
    shard_bytes = min(max(total // _SHARDS_WANTED, _MIN_SHARD_BYTES), _MAX_SHARD_BYTES)
    began, done, infos = time.monotonic(), 0, []
    for info in _tokenize(folder, blocks_of(scanned_documents(source, scan), shard_bytes), tokenizer, workers):
        infos.append(info)
        done += info.text_bytes
        rate = done / max(time.monotonic() - began, 1e-6) / 1e6
        progress(f"tokenizing: {done / 1e6:.1f} of {total / 1e6:.1f} MB, {len(infos)} shards, {rate:.1f} MB/s")
    ordered = tuple(sorted(infos, key=lambda info: (SPLITS.index(info.split), info.name)))
    index = ShardIndex(
        format=FORMAT,
        tokenizer=tokenizer.fingerprint,
        source=scan.fingerprint,
        pieces=tokenizer.pieces,
        dtype=token_dtype(tokenizer.pieces),
        shards=ordered,
        train_counts=_count_pieces(folder, ordered, tokenizer.pieces),
    )
    write_index(folder, index, tokenizer.model)


def _tokenize(folder: Path, blocks: Iterator[Block], tokenizer: Tokenizer, workers: int) -> Iterator[ShardInfo]:
    """Shards of `blocks` in any order; at most two blocks per worker are in memory."""
    if workers <= 1:
        for block in blocks:
            yield tokenize_block(str(folder), block, tokenizer.model)
        return
    with ExitStack() as stack:
        idle: SimpleQueue[Child] = SimpleQueue()
        for _ in range(workers):
            child = Child()
            stack.callback(child.close)
            idle.put(child)

        def work(block: Block) -> ShardInfo:
            child = idle.get()
            try:
                return child.call("data.shards.blocks:tokenize_block", str(folder), block, tokenizer.model)
            finally:
                idle.put(child)

        pool = stack.enter_context(ThreadPoolExecutor(workers))
        pending: list[Future[ShardInfo]] = []
        for block in blocks:
            pending.append(pool.submit(work, block))
            if len(pending) >= 2 * workers:
                yield pending.pop(0).result()
        for future in pending:
            yield future.result()


def _count_pieces(folder: Path, shards: Sequence[ShardInfo], pieces: int) -> tuple[int, ...]:
    counts = np.zeros(pieces, dtype=np.int64)
    for shard in shards:
        if shard.split == "train":
            tokens = np.fromfile(folder / f"{shard.name}.tokens", dtype=token_dtype(pieces))
            counts += np.bincount(tokens, minlength=pieces)
    return tuple(counts.tolist())
