"""A rank's process as seen by the one that started it: calls go to it, answers come back, and how it ended is told."""

from __future__ import annotations

import math
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Literal

from launch.ranks.allocator import allocator_of_children
from launch.ranks.child import Answer, Files, Seat, serve

Start = Literal["fork", "spawn"]  # fork: from the server; spawn: a new Python, where forks cannot use the GPU or time
_STACKS_S = 0.5  # for the stacks of a hung rank to be written
_REAP_S = 3.0
_TAIL_LINES = 12
_PEERS_SIGNALS = (-signal.SIGABRT, -signal.SIGTERM)  # by which a rank may end because another one failed
_HEAD_START_NS = 10**9  # an end is seen later than it was; what a peer says of its lost connection is no earlier cause


class Rank:
    """One process. It ends with the one that started it."""

    def __init__(
        self, number: int, *, folder: Path, environment: Mapping[str, str], preload: Sequence[str], start: Start
    ) -> None:
        context: Any = multiprocessing.get_context("forkserver" if start == "fork" else "spawn")
        self.number = number
        self.files = Files(log=folder / f"rank{number}.log", stacks=folder / f"rank{number}.stacks")
        self.line, theirs = context.Pipe()
        arguments = (theirs, self.files, dict(environment), tuple(preload))
        self.process = context.Process(target=serve, args=arguments, daemon=True)
        with allocator_of_children(environment) if start == "spawn" else nullcontext():
            self.process.start()
        theirs.close()

    def send(self, call: bytes) -> None:
        """Hand it a call; one that has died while it was idle says so instead of an answer."""
        with suppress(OSError):
            self.line.send_bytes(call)

    def receive(self) -> Answer:
        """Its answer, or how it ended."""
        try:
            return pickle.loads(self.line.recv_bytes())  # of a process that we started ourselves
        except (EOFError, OSError):
            self.process.join(_REAP_S)
            code = self.process.exitcode
            how = f"was killed by {signal.Signals(-code).name}" if code and code < 0 else f"ended with exit code {code}"
            early = 0 if code in _PEERS_SIGNALS else _HEAD_START_NS
            return Answer(failure=how, detail=self.tail(), at=time.monotonic_ns() - early)

    def tail(self, lines: int = _TAIL_LINES) -> str:
        """The end of what it has printed."""
        return "\n".join(_text(self.files.log).splitlines()[-lines:])

    def stop(self) -> None:
        """Kill it, if it lives."""
        self.line.close()
        if self.process.is_alive():
            self.process.kill()
        self.process.join()


def stacks(ranks: Sequence[Rank]) -> list[str]:
    """The stacks of ranks that hang, asked for and waited for."""
    for rank in ranks:
        os.kill(rank.process.pid, signal.SIGUSR1)
    time.sleep(_STACKS_S if ranks else 0.0)
    return [_text(rank.files.stacks) for rank in ranks]


def call(ranks: Sequence[Rank], function: Callable[..., Any], arguments: tuple[Any, ...], store: Path) -> None:
    """Have every rank run `function(seat, *arguments)`; `gather` has what comes of it.

    `function` is a top-level function of an importable module; it, the arguments and its value are pickled.
    """
    for rank in ranks:
        seat = Seat(rank.number, len(ranks), str(store))
        rank.send(pickle.dumps((function, seat, arguments)))


def gather(ranks: Sequence[Rank], *, timeout_s: float, grace_s: float = math.inf) -> dict[int, Answer]:
    """Answers by rank; those that gave none in time are missing. After a failure the others have `grace_s` left."""
    end = time.monotonic() + timeout_s
    answers: dict[int, Answer] = {}
    while silent := [rank for rank in ranks if rank.number not in answers]:
        left = max(0.0, end - time.monotonic())
        ready = wait([rank.line for rank in silent], timeout=None if math.isinf(left) else left)
        if not ready:
            break
        for rank in silent:
            if rank.line in ready:
                answers[rank.number] = answer = rank.receive()
                if answer.failure:
                    end = min(end, time.monotonic() + grace_s)
    return answers


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""
