"""What a rank of a pool does: waits for a function, runs it, says what came of it, until its line is closed."""

from __future__ import annotations

import faulthandler
import importlib
import os
import pickle
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from conf.errors import PointsmanError
from conf.safety.streams import redact_streams
from launch.ranks.bound import die_with_parent


class Seat(NamedTuple):
    """A rank's seat in one call: the first argument of every function that a pool runs."""

    rank: int
    world: int  # ranks that take part
    store: str  # a file of this call, not there yet, in which they can meet


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What came of a call on one rank."""

    value: Any = None  # what the function returned
    failure: str = ""  # what happened instead, as a verb: "raised ValueError: no"
    detail: str = ""  # where it was raised, or the end of what the process had printed
    at: int = field(default_factory=time.monotonic_ns)  # the same clock in all processes of a machine


@dataclass(frozen=True, kw_only=True, slots=True)
class Files:
    """Where a rank leaves what outlives it."""

    log: Path  # everything it prints
    stacks: Path  # of all its threads, when it is asked for them or killed by a fault


def serve(line: Connection, files: Files, environment: Mapping[str, str], preload: Sequence[str]) -> None:
    """Body of a rank's process. Exit code 1 after a call that raised: its peers then lose their connection at once."""
    die_with_parent(os.getppid(), signal.SIGKILL)
    _redirect(files.log)
    redact_streams()
    os.environ.clear()
    os.environ.update(environment)
    warnings.filterwarnings("ignore")
    stacks = files.stacks.open("w")  # faulthandler needs it as long as the process lives
    faulthandler.enable(stacks, all_threads=True)
    faulthandler.register(signal.SIGUSR1, stacks, all_threads=True)
    for name in preload:
        importlib.import_module(name)
    if "torch" in sys.modules:  # it may have counted its threads in another environment
        sys.modules["torch"].set_num_threads(int(environment.get("OMP_NUM_THREADS", "1")))
    line.send_bytes(pickle.dumps(Answer()))  # ready
    while True:
        try:
            call = line.recv_bytes()
        except EOFError:
            return
        answer, content = _answer(call)
        line.send_bytes(content)
        if answer.failure:
            sys.exit(1)


def _answer(call: bytes) -> tuple[Answer, bytes]:
    """The answer, and the answer pickled: a value that cannot travel is a failure too."""
    try:
        function, seat, arguments = _unpickled(call)
        answer = Answer(value=function(seat, *arguments))
        return answer, pickle.dumps(answer)
    except Exception as error:
        traceback.print_exc()
        where = "" if isinstance(error, PointsmanError) else "".join(traceback.format_tb(error.__traceback__))
        failed = Answer(failure=f"raised {type(error).__name__}: {error}", detail=where)
        return failed, pickle.dumps(failed)


def _unpickled(call: bytes) -> tuple[Callable[..., Any], Seat, tuple[Any, ...]]:
    # Safe here: both ends of this anonymous pipe are our own processes; no file or network is read.
    function, seat, arguments = pickle.loads(call)
    here = {"RANK": seat.rank, "WORLD_SIZE": seat.world, "LOCAL_RANK": seat.rank, "LOCAL_WORLD_SIZE": seat.world}
    os.environ.update({name: str(value) for name, value in here.items()})
    return function, seat, arguments


def _redirect(path: Path) -> None:
    """Send what the process prints, C++ warnings included, to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
