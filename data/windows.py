"""Windows of tokens addressed by number over memory-mapped shards.

concat: the documents of a split run together without separators and are cut every `raw` tokens; the last window of the
split, if it is not full, is left out unless it is the only one. (T5 does so with 128 documents at a time.) document:
every document is cut on its own and its last window may be short; documents shorter than two tokens have nothing to
corrupt and are skipped (and counted).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from conf.schema import PackingName
from data.shards.shards import ShardReader

MIN_WINDOW = 2  # tokens: one to predict and one to predict it from

Windows = list[NDArray[np.int64]]


class IndexedWindows:
    """Windows of one split. `count` of them, at most `raw` tokens each; `skipped` documents gave none."""

    def __init__(self, readers: Sequence[ShardReader], *, raw: int, packing: PackingName) -> None:
        self.raw = raw
        self._tokens = [reader.tokens for reader in readers]
        self._shard_starts = np.cumsum([0, *(len(tokens) for tokens in self._tokens)])
        self.skipped = 0
        self._document_starts: NDArray[np.int64] | None = None
        if packing == "concat":
            total = int(self._shard_starts[-1])
            self.count = total // raw if total >= raw else int(total >= MIN_WINDOW)
        else:
            self._index_documents(readers)

    def get(self, numbers: NDArray[np.int64]) -> Windows:
        """Tokens of windows `numbers`, each in [0, count)."""
        assert numbers.size == 0 or 0 <= numbers.min() <= numbers.max() < self.count, (numbers, self.count)
        if self._document_starts is None:
            starts = numbers * self.raw
            stops = np.minimum(starts + self.raw, self._shard_starts[-1])
        else:
            documents = np.searchsorted(self._first_windows, numbers, side="right") - 1
            starts = self._document_starts[documents] + (numbers - self._first_windows[documents]) * self.raw
            stops = np.minimum(starts + self.raw, self._document_stops[documents])
        return [self._read(int(start), int(stop)) for start, stop in zip(starts, stops, strict=True)]

    def _index_documents(self, readers: Sequence[ShardReader]) -> None:
        offsets = [reader.offsets + start for reader, start in zip(readers, self._shard_starts, strict=False)]
        starts = np.concatenate([np.zeros(0, dtype=np.int64), *(offset[:-1] for offset in offsets)])
        stops = np.concatenate([np.zeros(0, dtype=np.int64), *(offset[1:] for offset in offsets)])
        lengths = stops - starts
        windows = lengths // self.raw + (lengths % self.raw >= MIN_WINDOW)
        kept = windows > 0
        self.skipped = int(np.count_nonzero(~kept))
        self._document_starts, self._document_stops = starts[kept], stops[kept]
        self._first_windows = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(windows[kept])])[:-1]
        self.count = int(windows.sum())

    def _read(self, start: int, stop: int) -> NDArray[np.int64]:
        """Tokens [start, stop) of the split, which may run across shards."""
        parts = []
        shard = int(np.searchsorted(self._shard_starts, start, side="right")) - 1
        while start < stop:
            inside = start - int(self._shard_starts[shard])
            part = self._tokens[shard][inside : inside + stop - start]
            parts.append(np.asarray(part, dtype=np.int64))
            start += len(part)
            shard += 1
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def cut(tokens: Sequence[int], raw: int) -> Windows:
    """One document cut into windows of at most `raw` tokens, the last one left out when shorter than two."""
    pieces = [np.asarray(tokens[start : start + raw], dtype=np.int64) for start in range(0, len(tokens), raw)]
    return [piece for piece in pieces if len(piece) >= MIN_WINDOW]
