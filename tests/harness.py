"""Runs a function in several gloo ranks of this machine and brings back what each returned, or how each failed.

Children are forked from a server that has torch, Megatron-Core and DeepSpeed imported already, so that a two-rank test
costs some 0.1 s instead of the 6 s of `spawn` or torchrun. A rank that hangs is killed at the deadline and its stack
is part of the failed assertion; nothing here can hang a test run.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from tests import harness_child

# Imported once in the fork server. Each costs seconds; none starts threads that a fork would lose.
PRELOAD = ["pytest", "torch", "torch.distributed", "tests.harness_child", "megatron.core.parallel_state",
           "megatron.core.tensor_parallel", "deepspeed",
           "deepspeed.runtime.zero.muon.muon_optimizer"]  # fmt: skip  # ZeRO imports it, and with it torch._dynamo
SERVER_START_S = 300  # some 8 s of work, on cores that may be busy
SIGNAL_GRACE_S = 0.3  # for faulthandler to write the stacks of a hung rank


@dataclass(frozen=True, kw_only=True)
class RankResult:
    """How one rank ended."""

    rank: int
    exit_code: int | None  # 0: clean; negative: minus the signal; None never happens, the process is always reaped
    finished: bool  # fn returned; `value` is what it returned
    value: Any = None
    error: str | None = None  # traceback of the exception fn raised
    error_type: str | None = None  # its class name
    hung: bool = False  # killed at the deadline
    stack: str = ""  # of every thread, when it hung
    output: str = field(default="", repr=False)  # what it wrote to stdout and stderr

    def report(self) -> str:
        """Everything known about a rank that failed."""
        state = "hung and was killed" if self.hung else f"exit code {self.exit_code}"
        parts = [f"--- rank {self.rank}: {state}", self.error or "", self.stack, self.output[-4000:]]
        return "\n".join(part for part in parts if part)


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
    context = _ready_server()
    call = pickle.dumps((fn, args))
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        processes = []
        for rank in range(world):
            job = harness_child.Job(
                rank=rank, world=world, folder=folder, call=call, timeout_s=timeout_s, backend=backend,
                environment=dict(os.environ),
            )  # fmt: skip
            process = context.Process(target=harness_child.run, args=(job,), daemon=True)
            process.start()
            processes.append(process)
        hung = _wait(processes, deadline_s)
        return [_collect(rank, p, Path(folder), hung=rank in hung) for rank, p in enumerate(processes)]


def start_server() -> Any:
    """The multiprocessing context, its fork server running; the server imports in the background at its first start."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    shown = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = "ignore"  # what libraries say on import is no news, and nobody captures the server
    try:
        forkserver.ensure_running()
    finally:
        del os.environ["PYTHONWARNINGS"]
        if shown is not None:
            os.environ["PYTHONWARNINGS"] = shown
    return context


@cache
def _ready_server() -> Any:
    """As `start_server`, and wait for its imports, which must not count against the deadline of a test."""
    context = start_server()
    probe = context.Process(target=os.getpid, daemon=True)
    probe.start()
    probe.join(SERVER_START_S)
    assert probe.exitcode == 0, f"the fork server was not ready after {SERVER_START_S} s (exit code {probe.exitcode})"
    return context


def _wait(processes: list[Any], deadline_s: float) -> set[int]:
    """Wait for all; at the deadline ask the rest for their stacks and kill them. Returns the ranks that hung."""
    end = time.monotonic() + deadline_s
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    hung = {rank for rank, process in enumerate(processes) if process.exitcode is None}
    for rank in hung:
        os.kill(processes[rank].pid, signal.SIGUSR1)
    if hung:
        time.sleep(SIGNAL_GRACE_S)
    for rank in hung:
        processes[rank].kill()
    for process in processes:
        process.join()
    return hung


def _collect(rank: int, process: Any, folder: Path, *, hung: bool) -> RankResult:
    files = harness_child.RankFiles(folder, rank)
    outcome = pickle.loads(files.result.read_bytes()) if files.result.exists() else {}
    return RankResult(
        rank=rank, exit_code=process.exitcode, finished="value" in outcome, value=outcome.get("value"),
        error=outcome.get("error"), error_type=outcome.get("error_type"), hung=hung,
        stack=_text(files.stack) if hung else "", output=_text(files.output),
    )  # fmt: skip


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""
