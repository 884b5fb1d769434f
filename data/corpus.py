"""The text of a run, opened: tokenizer, fingerprints, sizes, windows by number, and a unigram model as a yardstick."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from conf.errors import ConfigError, DataError
from conf.schema import RunConfig
from conf.sources import SOURCES
from conf.tasks.table import check_sentinels, window_lengths
from data.batch import IntArray
from data.prepare import check_folders, prepare_finite
from data.shards.shards import TOKENIZER_NAME, ShardIndex, ShardReader, read_index
from data.shards.unknown import unknown_note, unknown_tokens_note
from data.sources.finite import SPLITS, Split
from data.streams.held_out import stream_validation
from data.streams.stream import lane_windows, stream_fingerprint
from data.streams.stream_tokenizer import stream_tokenizer
from data.tasks.task import text_kind
from data.text.tokenizer import Tokenizer
from data.windows import IndexedWindows, Windows

_UNIGRAM_STREAM_WINDOWS = 1_000  # of the first lane: a stream has no end to count to


class Corpus:
    """Tokenised text of a run. `streams`: the training split is read on the way and has no known size."""

    def __init__(
        self,
        cfg: RunConfig,
        tokenizer: Tokenizer,
        folders: Sequence[Path],
        *,
        data_fingerprint: str,
        notes: Sequence[str] = (),
    ) -> None:
        """`notes`: what a person should know about the text."""
        self.cfg = cfg
        self.tokenizer = tokenizer
        self.folders = tuple(folders)
        self.fingerprint: dict[str, str] = {"tokenizer": tokenizer.fingerprint, "data": data_fingerprint}
        self.notes = tuple(notes)
        self.streams = not self.folders
        self._windows: dict[Split, IndexedWindows] = {}

    @cached_property
    def _indexes(self) -> tuple[ShardIndex, ...]:
        return tuple(read_index(folder) for folder in self.folders)

    def windows(self, split: Split) -> int | None:
        """Windows of a split in one pass; None for a streamed training split (unknown)."""
        if self.streams:
            return None if split == "train" else len(self.validation_stream)
        return self.indexed(split).count

    def documents(self, split: Split) -> int | None:
        """Documents of a split; None for streams."""
        if self.streams:
            return None
        return sum(shard.documents for index in self._indexes for shard in index.shards if shard.split == split)

    def tokens(self, split: Split) -> int | None:
        """Tokens of text of a split; None for streams."""
        if self.streams:
            return None
        return sum(shard.tokens for index in self._indexes for shard in index.shards if shard.split == split)

    def indexed(self, split: Split) -> IndexedWindows:
        """Windows by number of a source that does not stream."""
        assert not self.streams
        if split not in self._windows:
            readers = [
                ShardReader(folder, shard, index.dtype)
                for folder, index in zip(self.folders, self._indexes, strict=True)
                for shard in index.shards
                if shard.split == split
            ]
            raw = window_lengths(self.cfg.data).raw
            self._windows[split] = IndexedWindows(readers, raw=raw, packing=self.cfg.data.packing)
        return self._windows[split]

    @cached_property
    def validation_stream(self) -> Windows:
        """The held-out windows of a streamed source that evaluations use: as many as they ask for."""
        return stream_validation(self.cfg, self.tokenizer)

    def unigram_nats(self, targets: IntArray) -> float:
        """Mean cross-entropy in nats of the text tokens of `targets` under the training split's token frequencies.

        Add-one smoothing over the tokenizer's pieces. Text tokens are what `data.tasks.task.text_kind` says: sentinels,
        EOS and padding are left out, since their places are predictable. NaN when there is no text token. For streams
        the frequencies are those of the first windows of the first lane.
        """
        text = targets[text_kind(self.tokenizer.vocabulary).mask(targets)]
        if text.size == 0:
            return math.nan
        counts = self._train_counts.astype(np.float64) + 1.0
        return float(-np.mean(np.log(counts / counts.sum())[text]))

    @cached_property
    def _train_counts(self) -> IntArray:
        counts = np.zeros(self.tokenizer.pieces, dtype=np.int64)
        if self.streams:
            raw = window_lengths(self.cfg.data).raw
            lane = lane_windows(self.cfg.data, self.tokenizer, lane=0, raw=raw, start=0)
            for _, (tokens, _epoch) in zip(range(_UNIGRAM_STREAM_WINDOWS), lane, strict=False):
                counts += np.bincount(tokens, minlength=len(counts))
        for index in self._indexes:
            counts += np.asarray(index.train_counts, dtype=np.int64)
        return counts


def open_corpus(cfg: RunConfig) -> Corpus:
    """The corpus of `cfg`; prepares what is missing (see `data.prepare.prepare_data` to do that before ranks start).

    Raises:
        DataError: text, shards or tokenizer cannot be used, or a split has no window.
        ConfigError: the model's vocabulary is too small for the tokenizer.
    """
    kind = SOURCES[cfg.data.source].kind
    if kind == "stream":
        corpus = _open_stream(cfg)
    elif kind == "shards":
        corpus = _open_shards(cfg)
    else:
        prepared = prepare_finite(cfg.data, out=None)
        folders, fingerprint = (prepared.folder,), _fingerprint((prepared.folder,))
        corpus = Corpus(cfg, prepared.tokenizer, folders, data_fingerprint=fingerprint, notes=prepared.notes)
    _check_sizes(corpus)
    return corpus


def _open_stream(cfg: RunConfig) -> Corpus:
    tokenizer = stream_tokenizer(cfg.data)
    held_out = stream_validation(cfg, tokenizer)
    note = unknown_tokens_note(np.concatenate(held_out), cfg.data) if held_out else None
    notes = (note,) if note else ()
    return Corpus(cfg, tokenizer, (), data_fingerprint=stream_fingerprint(cfg.data), notes=notes)


def _open_shards(cfg: RunConfig) -> Corpus:
    folders = check_folders(cfg.data)
    path = Path(cfg.data.tokenizer) if cfg.data.tokenizer else folders[0] / TOKENIZER_NAME
    tokenizer = Tokenizer.from_file(path, sentinels=cfg.data.sentinels)
    for folder in folders:
        index = read_index(folder)
        if index.tokenizer != tokenizer.fingerprint:
            fix = "leave data.tokenizer unset or prepare the shards again with it"
            if path == folder / TOKENIZER_NAME:
                fix = "it was changed since: restore it, or prepare the shards again"
            raise DataError(
                f"{folder}: its shards were made with tokenizer {index.tokenizer[:12]}, this run has "
                f"{tokenizer.fingerprint[:12]} ({path}); {fix}"
            )
    found = (unknown_note(read_index(folder), cfg.data) for folder in folders)
    notes = tuple(f"{folder}: {note}" for folder, note in zip(folders, found, strict=True) if note)
    return Corpus(cfg, tokenizer, folders, data_fingerprint=_fingerprint(folders), notes=notes)


def _fingerprint(folders: Sequence[Path]) -> str:
    return "+".join(read_index(folder).fingerprint for folder in folders)


def _check_sizes(corpus: Corpus) -> None:
    cfg, tokenizer = corpus.cfg, corpus.tokenizer
    if tokenizer.size > cfg.model.vocab_size:
        raise ConfigError(
            "model.vocab_size",
            got=cfg.model.vocab_size,
            needs=f"at least {tokenizer.size}: the tokenizer's {tokenizer.pieces} pieces and "
            f"{tokenizer.size - tokenizer.pieces} sentinels beside them",
            hint=f"model.vocab_size={tokenizer.size}",
        )
    for problem in check_sentinels(cfg.data, tokenizer.sentinels):
        raise problem
    for split in SPLITS:
        if corpus.windows(split) == 0 and not (corpus.streams and cfg.train.eval_batches == 0):
            raise DataError(
                f"the {split} split of data={cfg.data.source} has no window of at least two tokens "
                f"(data.validation_fraction={cfg.data.validation_fraction}); give more text, set "
                "data.validation_files, or change the fraction"
            )
