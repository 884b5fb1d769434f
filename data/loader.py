"""Batches of one data-parallel rank, step after step, made ahead by background processes.

The batches do not depend on the number of workers, and a loader started at step s continues exactly as one that came
from step 0. Tensor-parallel peers ask with the same `dp_rank` and get the same batches.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Iterator
from queue import Empty, Full, Queue
from typing import Any

import numpy as np

from conf.schema import RunConfig
from data.batch import MicroBatch, StepBatch
from data.children import Child
from data.corpus import Corpus
from data.rows import Rows, Share, rank_lanes, share_rows
from data.sources.finite import Split

_AHEAD = 2  # steps per worker kept ready, besides what the worker itself is making
_POLL_S = 0.2


def build_loader(
    corpus: Corpus,
    cfg: RunConfig,
    *,
    split: Split,
    dp_rank: int,
    dp_size: int,
    start_step: int = 0,
    shuffled_inputs: bool = False,
) -> Loader:
    """An iterator of `StepBatch`: endless for training, at most `train.eval_batches` long for validation.

    Validation reads the first windows in order as the same pairs every time; it runs in this process.
    `shuffled_inputs` permutes the tokens of each encoder sequence.

    Raises:
        ConfigError: the lanes of a stream do not divide the global batch.
        DataError: (while iterating) a worker failed; the text has its traceback.
    """
    assert cfg.train.global_batch % (dp_size * cfg.train.accumulation) == 0, (cfg.train, dp_size)
    workers = cfg.data.workers if split == "train" else 0
    if split == "train" and corpus.streams:
        workers = min(workers, len(rank_lanes(cfg, dp_rank, dp_size)))
    share = Share(split, dp_rank, dp_size, start_step, shuffled_inputs, worker=0, workers=max(workers, 1))
    if workers == 0:
        return Loader(share_rows(corpus, share), accumulation=cfg.train.accumulation)
    crew = _Crew(corpus, cfg, share)
    return Loader(crew.rows(together=corpus.streams), accumulation=cfg.train.accumulation, crew=crew)


class Loader:
    """Iterator of `StepBatch`. `close` (or the end of a with block, or garbage collection) ends its workers."""

    def __init__(self, rows: Iterator[Rows], *, accumulation: int, crew: _Crew | None = None) -> None:
        self._rows, self._accumulation = rows, accumulation
        self._close = weakref.finalize(self, crew.close) if crew is not None else lambda: None

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> StepBatch:
        try:
            return _step_batch(next(self._rows), self._accumulation)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the background processes; safe to call twice."""
        self._close()


class _Crew:
    """Worker processes of one loader and a thread for each that keeps a few results ready."""

    def __init__(self, corpus: Corpus, cfg: RunConfig, share: Share) -> None:
        self._stopped = threading.Event()
        self._children: list[Child] = []
        self._queues: list[Queue[Any]] = []
        folders = tuple(str(folder) for folder in corpus.folders)
        for worker in range(share.workers):
            child = Child()
            items = child.iterate(
                "data.rows:produce", cfg, folders, corpus.tokenizer.model, share._replace(worker=worker)
            )
            queue: Queue[Any] = Queue(_AHEAD)
            self._children.append(child)
            self._queues.append(queue)
            threading.Thread(target=_fill, args=(items, queue, self._stopped), daemon=True).start()

    def rows(self, *, together: bool) -> Iterator[Rows]:
        """Steps in order: each from one worker in turn, or (`together`) each of parts of all workers."""
        turns = [self._queues] if together else [[queue] for queue in self._queues]
        for queues in itertools.cycle(turns):
            parts = [_take(queue, self._stopped) for queue in queues]
            if self._stopped.is_set():
                return
            yield _merge([part for part in parts if part is not None])

    def close(self) -> None:
        self._stopped.set()
        for child in self._children:
            child.close()


def _fill(items: Iterator[Rows], queue: Queue[Any], stopped: threading.Event) -> None:
    try:
        for item in items:
            if not _put(item, queue, stopped):
                return
    except Exception as error:  # handed to the consumer, who raises it
        _put(error, queue, stopped)


def _put(item: Any, queue: Queue[Any], stopped: threading.Event) -> bool:
    while not stopped.is_set():
        try:
            queue.put(item, timeout=_POLL_S)
            return True
        except Full:
            pass
    return False


def _take(queue: Queue[Any], stopped: threading.Event) -> Rows | None:
    """The next result; None when the loader was closed."""
    while not stopped.is_set():
        try:
            item = queue.get(timeout=_POLL_S)
        except Empty:
            continue
        if isinstance(item, Exception):
            raise item
        return item
    return None


def _merge(parts: list[Rows]) -> Rows:
    """Parts of one step put together in the order of the global batch."""
    assert len({part.step for part in parts}) == 1, [part.step for part in parts]
    numbers_N = np.concatenate([part.numbers_N for part in parts])
    order = np.argsort(numbers_N)
    return Rows(
        parts[0].step,
        parts[0].epoch,
        numbers_N[order],
        np.concatenate([part.inputs_NL for part in parts])[order],
        np.concatenate([part.targets_NT for part in parts])[order],
    )


def _step_batch(rows: Rows, accumulation: int) -> StepBatch:
    micro = tuple(
        MicroBatch(inputs_BL=rows.inputs_NL[part], targets_BT=rows.targets_NT[part], rows_B=rows.numbers_N[part])
        for part in np.split(np.arange(len(rows.numbers_N)), accumulation)
    )
    return StepBatch(step=rows.step, epoch=rows.epoch, micro=micro)
