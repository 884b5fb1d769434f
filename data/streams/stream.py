"""Streamed text (hub sets such as C4, or local files through the same code) as endless windows in fixed lanes.

A lane is an independent reader: with at least as many files as lanes it owns files, otherwise it takes every lanes-th
record. What a lane yields is a pure function of (seed, lane, position), whatever the layout and the number of workers.
"Shuffled" means here: the order of a lane's files changes with every pass, and windows are shuffled inside consecutive
blocks of `data.stream_window`; records of one file stay near each other. Resuming re-reads a lane from its beginning.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from conf.errors import DataError
from conf.reading.paths import text_files
from conf.schema import DataConfig
from data.files import sha256_bytes
from data.notice import notice
from data.order import fold_key, permute
from data.sources.finite import cache_folder, is_validation
from data.sources.hub import row_of, stream_files, stream_hub
from data.sources.local import local_documents
from data.sources.texts import BadRows, Row
from data.text.tokenizer import Tokenizer
from data.windows import MIN_WINDOW, Windows, cut

_BATCH_DOCUMENTS = 8
_BLOCK_TAG = 0x626C6F636B


class LaneWindow(NamedTuple):
    """One window of a lane and the pass over the lane's text in which it was completed."""

    tokens: NDArray[np.int64]
    epoch: int


def stream_fingerprint(data: DataConfig) -> str:
    """Checksum of what is streamed: names and revision of a hub set, or names and sizes of local files."""
    files = [[path.name, path.stat().st_size] for path in text_files("data.hub_files", data.hub_files)]
    hub = [data.hub_path, data.hub_name, data.hub_revision, data.hub_split, data.hub_validation_split]
    settings = [hub, files, list(data.validation_files), data.validation_fraction, data.text_field]
    return sha256_bytes(json.dumps(settings).encode())


def stream_texts(data: DataConfig) -> Iterator[str]:
    """One pass over the training documents in the order of the files."""
    bad = BadRows(data, report=notice)
    yield from _training_texts(_open_stream(data, data.hub_split), data, bad, lane=0, lanes=1)


def lane_windows(data: DataConfig, tokenizer: Tokenizer, *, lane: int, raw: int, start: int) -> Iterator[LaneWindow]:
    """Endless windows of one lane from number `start` on, shuffled inside blocks of `data.stream_window`."""
    block_size = data.stream_window
    windows = _windows_in_order(data, tokenizer, lane, raw)
    skipped_blocks = start // block_size
    for _ in islice(windows, skipped_blocks * block_size):
        pass
    block, inside = skipped_blocks, start % block_size
    while True:
        items = list(islice(windows, block_size))
        order = permute(np.arange(block_size), block_size, fold_key(data.seed, _BLOCK_TAG, lane, block))
        for place in order[inside:]:
            yield items[place]
        block, inside = block + 1, 0


def validation_windows(data: DataConfig, tokenizer: Tokenizer, *, raw: int, wanted: int) -> Windows:
    """The first `wanted` windows (fewer if there are fewer) of the held-out text, in order."""
    packer = _Packer(data, raw)
    windows: Windows = []
    for ids in _encoded(_validation_texts(data), tokenizer):
        windows += packer.add(ids)
        if len(windows) >= wanted:
            return windows[:wanted]
    return windows or packer.rest()


def _windows_in_order(data: DataConfig, tokenizer: Tokenizer, lane: int, raw: int) -> Iterator[LaneWindow]:
    stream, lanes = _open_stream(data, data.hub_split), data.stream_lanes
    if stream.num_shards >= lanes:
        stream, place, of = stream.shard(num_shards=lanes, index=lane), 0, 1
    else:
        place, of = lane, lanes
    stream = stream.shuffle(seed=data.seed, buffer_size=1)  # a buffer of one: only the order of files changes
    packer, epoch, bad = _Packer(data, raw), 0, BadRows(data, report=notice)
    while True:
        stream.set_epoch(epoch)
        made = 0
        for ids in _encoded(_training_texts(stream, data, bad, lane=place, lanes=of), tokenizer):
            made += len(ids)
            for window in packer.add(ids):
                yield LaneWindow(window, epoch)
        if made < MIN_WINDOW:
            raise DataError(
                f"data.stream_lanes: lane {lane} of {lanes} got no training text from {_name(data)}; lower it, or give "
                "more text"
            )
        epoch += 1


class _Packer:
    """Documents to windows: running on across documents (concat) or each on its own (document)."""

    def __init__(self, data: DataConfig, raw: int) -> None:
        self._raw, self._joins = raw, data.packing == "concat"
        self._carry: list[int] = []

    def add(self, ids: list[int]) -> Windows:
        """Windows that became complete with one more document."""
        if not self._joins:
            return cut(ids, self._raw)
        self._carry += ids
        full = len(self._carry) // self._raw * self._raw
        windows = cut(self._carry[:full], self._raw)
        self._carry = self._carry[full:]
        return windows

    def rest(self) -> Windows:
        """The last, short window."""
        return cut(self._carry, self._raw)


def _encoded(texts: Iterator[str], tokenizer: Tokenizer) -> Iterator[list[int]]:
    while batch := list(islice(texts, _BATCH_DOCUMENTS)):
        yield from tokenizer.encode_documents(batch)


def _training_texts(stream: Any, data: DataConfig, bad: BadRows, *, lane: int, lanes: int) -> Iterator[str]:
    by_hash = _holds_out_by_hash(data)
    own = (row for number, row in enumerate(_rows(stream, data)) if number % lanes == lane)
    for text in bad.good(own):
        if text.strip() and not (by_hash and is_validation(text, data.validation_fraction)):
            yield text


def _holds_out_by_hash(data: DataConfig) -> bool:
    """Local files have no splits of their own, so `hub_validation_split` counts only for a set of the hub."""
    return not data.validation_files and (data.hub_validation_split is None or bool(data.hub_files))


def _validation_texts(data: DataConfig) -> Iterator[str]:
    bad = BadRows(data, report=notice)
    if data.validation_files:
        files = text_files("data.validation_files", data.validation_files)
        yield from bad.good(local_documents(files, field=data.text_field))
    elif not _holds_out_by_hash(data):
        assert data.hub_validation_split is not None
        yield from bad.good(_rows(_open_stream(data, data.hub_validation_split), data))
    else:
        for text in bad.good(_rows(_open_stream(data, data.hub_split), data)):
            if is_validation(text, data.validation_fraction):
                yield text


def _rows(stream: Any, data: DataConfig) -> Iterator[Row]:
    number = -1
    try:
        for number, record in enumerate(stream):
            if not data.hub_files:
                yield row_of(record, data.text_field, f"{_name(data)}: record {number + 1}")
            else:  # read by us, see `stream_files`
                yield DataError(record["fault"]) if record["text"] is None else record["text"]
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{_name(data)}: reading stopped after record {number + 1} ({type(error).__name__}: {error}); check the "
            "network or the files and start again, the run resumes"
        ) from error


def _open_stream(data: DataConfig, split: str) -> Any:
    files = text_files("data.hub_files", data.hub_files)
    if files:
        return stream_files(files, data.text_field)
    assert data.hub_path is not None, "validation asks for one of them"
    return stream_hub(
        data.hub_path, data.hub_name, split=split, revision=data.hub_revision, cache_dir=cache_folder(data)
    )


def _name(data: DataConfig) -> str:
    if data.hub_files:
        return f"data.hub_files={','.join(data.hub_files)}"
    return f"{data.hub_path}/{data.hub_name} split {data.hub_split}"
