"""Rows of the global batch: which window each row reads, and the pair it becomes. A pure function of (step, row).

Shape suffixes: N rows made together, L encoder length, T decoder length.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from conf.errors import ConfigError
from conf.schema import RunConfig
from conf.tasks.table import window_lengths
from data.batch import EOS_ID, IntArray
from data.corpus import Corpus
from data.order import fold_key, permute, places
from data.sources.finite import Split
from data.streams.stream import lane_windows
from data.tasks.task import task_of
from data.text.tokenizer import Tokenizer
from data.windows import Windows

_VALIDATION_EPOCH = -(1 << 40)  # keys of evaluation: the same pairs every time, never one of training
_SHUFFLE_TAG = 0x73687566


class Share(NamedTuple):
    """Which rows of every step are wanted: those of one data-parallel rank, possibly split over its workers."""

    split: Split
    dp_rank: int
    dp_size: int
    start_step: int
    shuffled_inputs: bool
    worker: int
    workers: int


class Rows(NamedTuple):
    """Some rows of one step's global batch."""

    step: int
    epoch: float
    numbers_N: IntArray  # places in the global batch
    inputs_NL: IntArray
    targets_NT: IntArray


def produce(cfg: RunConfig, folders: tuple[str, ...], model: bytes, share: Share) -> Iterator[Rows]:
    """Rows of `share` step by step, made in a background process that opens the text itself."""
    tokenizer = Tokenizer(model, sentinels=cfg.data.sentinels, origin="tokenizer")
    yield from share_rows(Corpus(cfg, tokenizer, [Path(name) for name in folders], data_fingerprint=""), share)


def share_rows(corpus: Corpus, share: Share) -> Iterator[Rows]:
    """Rows of `share` from `start_step` on; endless for training, finite for validation.

    Of an indexed source worker w makes every workers-th step whole; of a stream it makes its lanes of every step.
    """
    if share.split == "validation":
        return _validation_rows(corpus, share)
    return _stream_rows(corpus, share) if corpus.streams else _indexed_rows(corpus, share)


def rank_rows(cfg: RunConfig, dp_rank: int, dp_size: int) -> IntArray:
    """Rows of the global batch that a data-parallel rank holds: contiguous, micro-batch after micro-batch (ADR 001)."""
    share = cfg.train.global_batch // dp_size
    return np.arange(dp_rank * share, (dp_rank + 1) * share, dtype=np.int64)


def rank_lanes(cfg: RunConfig, dp_rank: int, dp_size: int) -> list[int]:
    """Lanes whose rows a rank holds. Raises ConfigError when a step does not read equally much of each lane.

    Only training asks for that: a run may be evaluated on a stream whatever its batch.
    """
    lanes = cfg.data.stream_lanes
    assert lanes % dp_size == 0, f"{lanes} lanes on {dp_size} ranks"
    if cfg.train.global_batch % lanes:
        raise ConfigError(
            "data.stream_lanes",
            got=lanes,
            needs=f"a divisor of train.global_batch = {cfg.train.global_batch} that the {dp_size} data-parallel ranks "
            "divide",
            hint=f"data.stream_lanes={dp_size}",
        )
    return list(range(dp_rank * lanes // dp_size, (dp_rank + 1) * lanes // dp_size))


def _indexed_rows(corpus: Corpus, share: Share) -> Iterator[Rows]:
    cfg, windows = corpus.cfg, corpus.indexed("train")
    rows = rank_rows(cfg, share.dp_rank, share.dp_size)
    step = share.start_step + share.worker
    while True:
        places_N = places(step * cfg.train.global_batch + rows, windows.count, cfg.data.seed)
        keys = np.stack([places_N.epochs, places_N.indices], axis=1)
        epoch = (step + 1) * cfg.train.global_batch / windows.count
        yield _make(corpus, share, step, epoch, rows, windows.get(places_N.indices), keys)
        step += share.workers


def _stream_rows(corpus: Corpus, share: Share) -> Iterator[Rows]:
    cfg, raw = corpus.cfg, window_lengths(corpus.cfg.data).raw
    per_lane = cfg.train.global_batch // cfg.data.stream_lanes
    lanes = rank_lanes(cfg, share.dp_rank, share.dp_size)[share.worker :: share.workers]
    start = share.start_step * per_lane
    readers = [lane_windows(cfg.data, corpus.tokenizer, lane=lane, raw=raw, start=start) for lane in lanes]
    rows = np.concatenate([np.arange(lane * per_lane, (lane + 1) * per_lane) for lane in lanes])
    lane_of_row = np.repeat(np.array(lanes, dtype=np.int64), per_lane)
    step = share.start_step
    while True:
        taken = [next(reader) for reader in readers for _ in range(per_lane)]
        numbers = step * per_lane + rows % per_lane
        keys = np.stack([-1 - lane_of_row, numbers], axis=1)  # negative: apart from the epochs of indexed sources
        yield _make(corpus, share, step, float(taken[0].epoch), rows, [window.tokens for window in taken], keys)
        step += 1


def _validation_rows(corpus: Corpus, share: Share) -> Iterator[Rows]:
    """The first windows in order; rows beyond the last one are padding, which counts as no tokens, on every rank."""
    cfg = corpus.cfg
    count = corpus.windows("validation")
    assert count is not None
    rows = rank_rows(cfg, share.dp_rank, share.dp_size)
    steps = min(cfg.train.eval_batches, -(-count // cfg.train.global_batch))
    for step in range(share.start_step + share.worker, steps, share.workers):
        numbers = step * cfg.train.global_batch + rows
        real = numbers[numbers < count]
        some = [corpus.validation_stream[n] for n in real] if corpus.streams else corpus.indexed("validation").get(real)
        windows = some + [np.zeros(0, dtype=np.int64)] * (len(rows) - len(real))
        keys = np.stack([np.full_like(numbers, _VALIDATION_EPOCH), numbers], axis=1)
        yield _make(corpus, share, step, 0.0, rows, windows, keys)


def _make(
    corpus: Corpus, share: Share, step: int, epoch: float, rows: IntArray, windows: Windows, keys: NDArray[np.int64]
) -> Rows:
    data = corpus.cfg.data
    inputs_NL, targets_NT = task_of(data).make(windows, keys, data, corpus.tokenizer.vocabulary)
    if share.shuffled_inputs:
        inputs_NL = _shuffle(inputs_NL, keys, data.seed)
    return Rows(step, epoch, rows, inputs_NL, targets_NT)


def _shuffle(inputs_NL: IntArray, keys: NDArray[np.int64], seed: int) -> IntArray:
    """Each row's tokens in another order, EOS and padding left in place: what is said is kept, where is lost."""
    shuffled_NL = inputs_NL.copy()
    for row, (epoch, index) in enumerate(keys.tolist()):
        count = int(np.count_nonzero(inputs_NL[row] > EOS_ID))
        if count:
            order = permute(np.arange(count), count, fold_key(seed, _SHUFFLE_TAG, epoch, index))
            shuffled_NL[row, :count] = inputs_NL[row, order]
    return shuffled_NL
