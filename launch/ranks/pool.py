"""A pool of ranks of this machine that runs one function after another; started anew after a crash or a hang."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from conf.errors import RanksFailed, is_peers_fault
from launch.ranks.child import Answer
from launch.ranks.rank import Rank, Start, call, gather, stacks
from launch.ranks.server import start_server

_START_S = 300.0  # until new processes are ready: imports, on cores that may be busy
_GRACE_S = 3.0  # for the other ranks to notice that one has failed
_DETAIL_LINES = 8
_STACK_LINES = 6


class RankPool:
    """Ranks that run one function at a time. Use as a context manager: none is left at its end."""

    def __init__(self, size: int, *, environment: Mapping[str, str], preload: Sequence[str], start: Start) -> None:
        """`preload`: modules that a rank has imported before it is ready."""
        self._size, self._environment, self._preload, self._start = size, environment, preload, start
        self._ranks: list[Rank] = []
        self._calls = 0
        if start == "fork":
            start_server(preload)

    def __enter__(self) -> RankPool:
        self._folder = tempfile.TemporaryDirectory(prefix="pointsman-ranks-")
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()
        self._folder.cleanup()

    def start(self) -> None:
        """Make the ranks ready, if they are not: new processes import for seconds. Raises RanksFailed."""
        if self._ranks:
            return
        settings: dict[str, Any] = {"environment": self._environment, "preload": self._preload, "start": self._start}
        folder = Path(self._folder.name)
        self._ranks = [Rank(number, folder=folder, **settings) for number in range(self._size)]
        self._values(self._ranks, _START_S)

    def run(
        self, function: Callable[..., Any], *arguments: Any, world: int | None = None, timeout_s: float = math.inf
    ) -> list[Any]:
        """Values of `function(seat, *arguments)` on the first `world` ranks (None: on all), in order of ranks.

        As for `call`. Raises RanksFailed when one raises, dies or hangs; the next call then starts new processes.
        """
        self.start()
        ranks = self._ranks[:world]
        self._calls += 1
        call(ranks, function, arguments, Path(self._folder.name) / f"store.{self._calls}")
        return self._values(ranks, timeout_s)

    def _values(self, ranks: Sequence[Rank], timeout_s: float) -> list[Any]:
        answers = gather(ranks, timeout_s=timeout_s, grace_s=_GRACE_S)
        silent = [rank for rank in ranks if rank.number not in answers]
        failures = {number: answer for number, answer in answers.items() if answer.failure}
        if failures or silent:
            lost = all(is_peers_fault(answer.failure) for answer in failures.values())
            text = _told_hang(silent, timeout_s, failures) if silent and lost else _told(failures, silent)
            self._stop()
            raise RanksFailed(text)
        return [answers[rank.number].value for rank in ranks]

    def _stop(self) -> None:
        for rank in self._ranks:
            rank.stop()
        self._ranks = []


def _told(failures: Mapping[int, Answer], silent: Sequence[Rank]) -> str:
    """The first failure with its last lines, then what happened to the others."""

    def order(number: int) -> tuple[bool, int]:
        return is_peers_fault(failures[number].failure), failures[number].at

    first, *rest = sorted(failures, key=order)
    lines = [f"rank {first} {failures[first].failure}", *failures[first].detail.splitlines()[-_DETAIL_LINES:]]
    lines += _lines(failures, rest)
    if silent:
        lines.append(f"{_names(silent)} did not answer any more")
    return "\n".join(lines)


def _told_hang(silent: Sequence[Rank], timeout_s: float, failures: Mapping[int, Answer]) -> str:
    """The ranks that did not answer, and what became of those that waited for them."""
    frames = [line for line in stacks(silent)[0].splitlines() if "File" in line][:_STACK_LINES]
    patience = "the others waited in vain" if failures else f"no answer after {timeout_s:.0f} s"
    head = f"{_names(silent)} hung: {patience}; rank {silent[0].number} was at"
    return "\n".join([head, *frames, *_lines(failures, sorted(failures))])


def _lines(failures: Mapping[int, Answer], numbers: Sequence[int]) -> list[str]:
    return [f"rank {number} {failures[number].failure.splitlines()[0]}" for number in numbers]


def _names(ranks: Sequence[Rank]) -> str:
    return ("ranks " if len(ranks) > 1 else "rank ") + ", ".join(str(rank.number) for rank in ranks)
