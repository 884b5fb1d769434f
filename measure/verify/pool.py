"""A pool of rank processes, started once and used for layout after layout; started anew after a crash or a hang."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from conf.errors import PointsmanError
from measure.verify import worker

if TYPE_CHECKING:
    from measure.verify.run_layout import Damage

# Imported once in the server that ranks are forked from; each costs seconds.
_PRELOAD = ["torch", "torch.distributed", "megatron.core.parallel_state", "megatron.core.tensor_parallel", "deepspeed",
            "deepspeed.runtime.zero.muon.muon_optimizer", "measure.verify.run_layout"]  # fmt: skip
_START_S = 300.0  # until a new process is ready: imports, on cores that may be busy
_GRACE_S = 3.0  # for the other ranks to notice that one has failed
_STACKS_S = 0.5  # for stacks of a hung rank to be written
_TAIL_LINES = 12

Start = Literal["fork", "spawn"]  # fork: from a server with everything imported; spawn: where forks cannot use the GPU


class LayoutFailed(PointsmanError):
    """A layout did not run to its end: a rank raised, died or hung. The text says which and how."""


@dataclass(slots=True)
class _Rank:
    process: Any
    line: Connection


class RankPool:
    """Processes that run one layout at a time. Use as a context manager."""

    def __init__(
        self, size: int, *, folder: Path, start: Start, environment: dict[str, str], damage: Damage | None = None
    ) -> None:
        self._size, self._folder, self._damage = size, folder, damage
        self._environment = environment
        self._context: Any = multiprocessing.get_context("forkserver" if start == "fork" else "spawn")
        if start == "fork":
            self._context.set_forkserver_preload(_PRELOAD)
            _start_server()
        self._ranks: list[_Rank] = []
        self._layouts = 0
        self.restarts = 0

    def __enter__(self) -> RankPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()

    def run(self, task: dict[str, Any], *, world: int, timeout_s: float) -> list[dict[str, Any]]:
        """Findings of ranks 0 .. world - 1 as JSON trees. Raises LayoutFailed, after which the pool starts anew."""
        assert world <= self._size, f"a layout of {world} ranks in a pool of {self._size}"
        self.start()
        self._layouts += 1
        store = self._folder / f"store.{self._layouts}"
        message = json.dumps({"task": task, "store": str(store)}).encode()
        try:
            for rank in self._ranks[:world]:
                rank.line.send_bytes(message)
            answers = self._collect(world, timeout_s)
        except (OSError, EOFError) as error:  # the line of a process that has died while it was idle
            self._restart_later()
            raise LayoutFailed(f"a rank could not be reached: {error}") from error
        except LayoutFailed:
            self._restart_later()
            raise
        store.unlink(missing_ok=True)
        return [answer["findings"] for answer in answers]

    def start(self) -> None:
        """Make the ranks ready, if they are not: new processes import for seconds. Raises LayoutFailed."""
        if self._ranks:
            return
        for rank in range(self._size):
            ours, theirs = self._context.Pipe()
            seat = worker.Seat(
                rank=rank, log=str(self._log(rank)), stacks=str(self._stacks(rank)), environment=self._environment
            )
            process = self._context.Process(target=worker.serve, args=(seat, theirs, self._damage), daemon=True)
            process.start()
            theirs.close()
            self._ranks.append(_Rank(process, ours))
        self._collect(self._size, _START_S)

    def _collect(self, world: int, timeout_s: float) -> list[dict[str, Any]]:
        """One answer of each rank. Raises LayoutFailed with the first failure, and what the others then said."""
        end = time.monotonic() + timeout_s
        answers: dict[int, dict[str, Any]] = {}
        failures: dict[int, str] = {}
        while len(answers) + len(failures) < world:
            waiting = {r: self._ranks[r].line for r in range(world) if r not in answers and r not in failures}
            ready = wait(list(waiting.values()), timeout=max(0.0, end - time.monotonic()))
            if not ready:
                break
            for rank in (r for r, line in waiting.items() if line in ready):
                answer = self._answer(rank)
                if isinstance(answer, str):
                    failures[rank] = answer
                    end = min(end, time.monotonic() + _GRACE_S)
                else:
                    answers[rank] = answer
        silent = [rank for rank in range(world) if rank not in answers and rank not in failures]
        if failures:
            raise LayoutFailed(self._tell(failures, silent))
        if silent:
            raise LayoutFailed(self._tell_hang(silent, timeout_s))
        return [answers[rank] for rank in range(world)]

    def _answer(self, rank: int) -> dict[str, Any] | str:
        """What a rank sent; as text what went wrong with it."""
        try:
            answer = json.loads(self._ranks[rank].line.recv_bytes())
        except (EOFError, OSError):
            process = self._ranks[rank].process
            process.join(_GRACE_S)
            code = process.exitcode
            how = f"was killed by {signal.Signals(-code).name}" if code and code < 0 else f"ended with exit code {code}"
            return "\n".join([f"rank {rank} {how}", *_tail(self._log(rank))])
        if "error" in answer:
            with self._log(rank).open("a", encoding="utf-8") as log:
                log.write(answer["traceback"])
            return "\n".join([f"rank {rank} raised {answer['error']}", *answer["traceback"].splitlines()[-7:-1]])
        return answer

    def _tell(self, failures: dict[int, str], silent: list[int]) -> str:
        # A rank whose connection broke is as a rule the second to fail.
        first, *rest = sorted(failures.values(), key=lambda text: "gloo" in text or "onnection closed" in text)
        lines = [first, *(text.splitlines()[0] for text in rest)]
        if silent:
            lines.append(f"ranks {', '.join(map(str, silent))} did not answer any more")
        return "\n".join(lines)

    def _tell_hang(self, silent: list[int], timeout_s: float) -> str:
        for rank in silent:
            os.kill(self._ranks[rank].process.pid, signal.SIGUSR1)
        time.sleep(_STACKS_S)
        ranks = ", ".join(map(str, silent))
        stacks = [line for line in _tail(self._stacks(silent[0]), 40) if "File" in line][:6]
        head = f"ranks {ranks} hung: no answer after {timeout_s:.0f} s; rank {silent[0]} was at"
        return "\n".join([head, *stacks])

    def _restart_later(self) -> None:
        self.restarts += 1
        self._stop()

    def _stop(self) -> None:
        for rank in self._ranks:
            rank.line.close()
        for rank in self._ranks:
            if rank.process.is_alive():
                rank.process.kill()
            rank.process.join()
        self._ranks = []

    def _log(self, rank: int) -> Path:
        return self._folder / f"rank{rank}.log"

    def _stacks(self, rank: int) -> Path:
        return self._folder / f"rank{rank}.stacks"


def _start_server() -> None:
    """Start the server of forks, whose imports then run while the caller does something else."""
    shown = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = "ignore"  # what libraries say on import would land in the table
    try:
        forkserver.ensure_running()
    finally:
        del os.environ["PYTHONWARNINGS"]
        if shown is not None:
            os.environ["PYTHONWARNINGS"] = shown


def _tail(path: Path, lines: int = _TAIL_LINES) -> list[str]:
    return path.read_text(errors="replace").splitlines()[-lines:] if path.exists() else []
