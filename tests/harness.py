"""Runs a function in several gloo ranks of this machine and brings back what each returned, or how each failed.

Ranks are forked from the server of `launch.ranks`, with torch, Megatron-Core and DeepSpeed imported already, so that a
two-rank test costs some 0.1 s instead of the 6 s of `spawn` or torchrun. A rank that hangs is killed at the deadline
and its stack is part of the failed assertion; nothing here can hang a test run.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from launch.ranks.child import Answer, Seat
from launch.ranks.rank import Rank, call, gather, stacks
from launch.ranks.server import TRAINING
from launch.ranks.server import start_server as _start_server

READY_S = 300  # some 8 s of imports at the first test, on cores that may be busy
LEAVE_TOGETHER_S = 3.0  # for ranks that are still connecting when one is done


@dataclass(frozen=True, kw_only=True)
class RankResult:
    """How one rank ended."""

    rank: int
    exit_code: int  # 0: clean; negative: minus the signal
    finished: bool  # fn returned; `value` is what it returned
    value: Any
    hung: bool  # killed at the deadline
    output: str  # what it wrote, the traceback of an exception included; if it hung, the stacks of all threads too

    def report(self) -> str:
        """Everything known about a rank that failed."""
        state = "hung and was killed" if self.hung else f"exit code {self.exit_code}"
        return f"--- rank {self.rank}: {state}\n{self.output}"


def run_ranks(
    fn: Callable[..., Any],
    world: int,
    *args: Any,
    timeout_s: float = 20,
    deadline_s: float = 60,
    backend: str | None = "gloo",
) -> list[Any]:
    """Values of `fn(rank, world, *args)` from every rank, in rank order.

    `fn` is a top-level function of an importable module; `args` and results are pickled. Each rank has one thread and
    a default process group with a timeout of `timeout_s` per collective (`backend=None`: no process group). Raises
    AssertionError with every rank's traceback or stack if any rank raises, dies, hangs or exits with a code but 0.
    """
    results = run_ranks_raw(fn, world, *args, timeout_s=timeout_s, deadline_s=deadline_s, backend=backend)
    failed = [r for r in results if not (r.finished and r.exit_code == 0)]
    if failed:
        raise AssertionError(f"{fn.__name__} on {world} ranks failed:\n" + "\n".join(r.report() for r in failed))
    return [r.value for r in results]


def run_ranks_raw(
    fn: Callable[..., Any],
    world: int,
    *args: Any,
    timeout_s: float = 20,
    deadline_s: float = 60,
    backend: str | None = "gloo",
) -> list[RankResult]:
    """As `run_ranks`, but failures, signals and hangs are reported, not raised: for tests of faults."""
    start_server()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # of the test, not of the moment the server started
    with tempfile.TemporaryDirectory(prefix="ranks-") as name:
        folder = Path(name)
        ranks = [
            Rank(number, folder=folder, environment=environment, preload=(), start="fork") for number in range(world)
        ]
        try:
            ready = gather(ranks, timeout_s=READY_S)
            assert len(ready) == world, f"the ranks were not ready after {READY_S} s"
            end = time.monotonic() + deadline_s
            call(ranks, _in_world, (fn, args, timeout_s, backend), folder / "store")
            answers = gather(ranks, timeout_s=deadline_s)
            return [_result(rank, answers.get(rank.number), end) for rank in ranks]
        finally:
            for rank in ranks:
                rank.stop()


def start_server() -> None:
    """Start the server of forks; it imports in the background at its first start."""
    _start_server(("pytest", *TRAINING, "tests.harness"))


def _in_world(seat: Seat, fn: Callable[..., Any], args: tuple[Any, ...], timeout_s: float, backend: str | None) -> Any:
    """Join the default process group, run, leave it."""
    import torch.distributed as dist

    if backend is not None:
        store = dist.FileStore(seat.store, seat.world)
        timeout = timedelta(seconds=timeout_s)
        dist.init_process_group(backend, store=store, rank=seat.rank, world_size=seat.world, timeout=timeout)
    value = fn(seat.rank, seat.world, *args)
    if dist.is_initialized():
        if backend is not None:
            _wait_for_peers(store, seat.world)
        dist.destroy_process_group()
    return value


def _wait_for_peers(store: Any, world: int) -> None:
    """Leave together: a rank that closes its connections while a slower one still makes them fails that one.

    Peers that a test lets fail or hang never come, so the wait is short.
    """
    store.add("left", 1)
    end = time.monotonic() + LEAVE_TOGETHER_S
    while store.add("left", 0) < world and time.monotonic() < end:
        time.sleep(0.005)


def _result(rank: Rank, answer: Answer | None, end: float) -> RankResult:
    """Let the rank end, until `end`."""
    rank.line.close()
    rank.process.join(max(0.0, end - time.monotonic()))
    hung = rank.process.exitcode is None
    stack = stacks([rank])[0] if hung else ""
    rank.stop()
    return RankResult(
        rank=rank.number, exit_code=rank.process.exitcode, finished=answer is not None and not answer.failure,
        value=answer.value if answer else None, hung=hung, output=rank.tail(100) + "\n" + stack,
    )  # fmt: skip
