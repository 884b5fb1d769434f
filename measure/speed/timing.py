"""Pieces of work measured alternately: A B B A .., so that what slows the machine slows all."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Work = Callable[[], object]
Clock = Callable[[Work, int], float]  # seconds that so many repetitions of the work took together

MIN_SECONDS = 0.02  # of one measurement; shorter work is repeated, or the clock's own noise would be measured
MAX_REPEATS = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Seconds per run of the work and of its peer, one of each a round."""

    ours: tuple[float, ...]
    peer: tuple[float, ...]

    @property
    def ours_seconds(self) -> float:
        """Median of our seconds."""
        return statistics.median(self.ours)

    @property
    def peer_seconds(self) -> float:
        """Median of the peer's seconds."""
        return statistics.median(self.peer)

    @property
    def ratios(self) -> tuple[float, ...]:
        """Ours over the peer's, round by round: neighbours in time, so that a slow minute weighs on both."""
        return tuple(a / b for a, b in zip(self.ours, self.peer, strict=True))

    @property
    def ratio(self) -> float:
        """Median of the rounds' ratios; below 1 we are faster."""
        return statistics.median(self.ratios)

    @property
    def spread(self) -> tuple[float, float]:
        """Lower and upper quartile of the rounds' ratios."""
        if len(self.ratios) < 2:
            return self.ratio, self.ratio
        lower, _, upper = statistics.quantiles(self.ratios, n=4, method="inclusive")
        return lower, upper


def clock_of(device: torch.device) -> Clock:
    """CUDA: events around the work and a wait for the second; CPU: `time.perf_counter`."""
    return _cuda_seconds if device.type == "cuda" else _host_seconds


def compare(
    ours: Work,
    peer: Work,
    *,
    clock: Clock,
    rounds: int,
    warmup: int = 2,
    repeats: int | None = None,
) -> Comparison:
    """Measure both, `rounds` times each, in alternation and with the order swapped in every other round.

    Each runs `warmup` times first, which also says how often short work must be repeated to fill a measurement.
    `repeats` fixes that number instead: ranks that work together must agree on it.
    """
    both = {"ours": ours, "peer": peer}
    found = interleave(both, clock=clock, rounds=rounds, warmup=warmup, repeats=repeats)
    return Comparison(ours=found["ours"], peer=found["peer"])


def interleave(
    works: Mapping[str, Work], *, clock: Clock, rounds: int, warmup: int = 2, repeats: int | None = None
) -> dict[str, tuple[float, ...]]:
    """Seconds per run of each, one a round; as `compare`, of any number of works."""
    assert rounds >= 1, rounds
    assert warmup >= 1, warmup
    counts = {}
    for name, work in works.items():
        seconds = [clock(work, 1) for _ in range(warmup)]
        counts[name] = repeats or repeats_for(min(seconds))
    samples: dict[str, list[float]] = {name: [] for name in works}
    for index in range(rounds):
        for name in list(works) if index % 2 == 0 else list(works)[::-1]:
            samples[name].append(clock(works[name], counts[name]) / counts[name])
    return {name: tuple(seconds) for name, seconds in samples.items()}


def repeats_for(seconds: float) -> int:
    """Repetitions with which work of so many seconds fills a measurement."""
    return min(max(1, math.ceil(MIN_SECONDS / max(seconds, 1e-9))), MAX_REPEATS)


def _host_seconds(work: Work, repeats: int) -> float:
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    return time.perf_counter() - began


def _cuda_seconds(work: Work, repeats: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(repeats):
        work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3
