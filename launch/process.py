"""What every process of a run does around its work: tell a deliberate error briefly, and end when its parent is gone.

The command line and the ranks share it, so that an error reads the same wherever it is raised.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from conf.errors import PointsmanError
from conf.safety.redact import redact, redact_text
from launch.memory import out_of_memory

USER_ERROR = 2  # exit code of a PointsmanError
INTERRUPTED = 128 + signal.SIGINT
DEBUG_VARIABLE = "POINTSMAN_DEBUG"
BOUND_VARIABLE = "POINTSMAN_END_WITH_PARENT"  # set by what starts runs of its own
ERROR_FILE_VARIABLE = "TORCHELASTIC_ERROR_FILE"  # where torchrun looks for a rank's last words
TIME_KEY = "nanoseconds"
CODE_KEY = "exit_code"
UNEXPECTED = 1  # Python's exit code of an exception that nothing catches
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def guarded(work: Callable[[], int]) -> int:
    """Run `work` and return its exit code; a `PointsmanError` becomes a short message on stderr and exit code 2.

    With POINTSMAN_DEBUG=1 the traceback is shown as well. Every exception is also left for the launcher (`noted`).
    Other exceptions are raised on.
    """
    try:
        with noted():
            return work()
    except PointsmanError as error:
        if os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0"):
            traceback.print_exc()
        print(short_message(error), file=sys.stderr, flush=True)
        return USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        return INTERRUPTED


@contextmanager
def noted() -> Iterator[None]:
    """Leave an exception in torchrun's error file, if there is one, so that the launcher knows which rank failed first.

    A rank must note its failure before it takes its process groups down: its peers, which fail as soon as their
    connections close, would otherwise be first. So the note that exists already is kept.
    """
    try:
        yield
    except Exception as error:
        refused = out_of_memory(error)
        write_error_file(refused or error)
        if refused is not None:
            raise refused from error
        raise


def short_message(error: PointsmanError) -> str:
    """`error: <text>`, the word in red on a terminal; further lines are indented."""
    text = redact_text(str(error)).replace("\n", "\n       ")
    colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    return f"\033[1;31merror:\033[0m {text}" if colour else f"error: {text}"


def write_error_file(error: BaseException) -> None:
    """Write the error in the form torchrun's agent reads; nothing without an agent or where a note is already."""
    path = os.environ.get(ERROR_FILE_VARIABLE)
    if not path or os.path.exists(path):
        return
    trace = "".join(traceback.format_exception(error))
    now = time.time_ns()  # torch keeps whole seconds, too coarse to tell who failed first
    code = USER_ERROR if isinstance(error, PointsmanError) else UNEXPECTED
    extra = {"py_callstack": trace, "timestamp": str(now // 10**9), TIME_KEY: now, CODE_KEY: code}
    message = {"message": f"{type(error).__name__}: {error}", "extraInfo": extra}
    draft = Path(f"{path}.draft")  # the agent may look, or end this process, at any moment
    with suppress(OSError):  # losing the note must not hide the error itself
        draft.write_text(json.dumps(redact({"message": message})))
        draft.replace(path)


def has_launcher() -> bool:
    """Whether torchrun or another launcher started this process; a rank that is alone has none."""
    return "TORCHELASTIC_RUN_ID" in os.environ or os.environ.get("WORLD_SIZE", "1") != "1"


def world_from_environment() -> tuple[int, int]:
    """(world size, ranks on this node) as torchrun and DeepSpeed set them; one rank when started by hand."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    return world, int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or world)


def die_with_launcher() -> None:
    """`die_with_parent` for a rank that has a launcher.

    The parent of a rank that is alone is the user's shell, which it must outlive under nohup, unless BOUND_VARIABLE
    says that it was started by something that cannot leave it behind.
    """
    if has_launcher() or BOUND_VARIABLE in os.environ:
        die_with_parent()


def die_with_parent(signum: int = signal.SIGTERM) -> None:
    """Ask the kernel for `signum` when the process that started this one ends, however it ends.

    A launcher killed with SIGKILL cannot stop its ranks; left alone they would go on writing into the run's folder.
    Linux only; elsewhere nothing happens.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signum, 0, 0, 0)
