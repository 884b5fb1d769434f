"""What every process of a run does around its work: tell an error briefly, to people and to its launcher.

The command line and the ranks share it, so that an error reads the same wherever it is raised.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from conf.errors import PointsmanError, RankLost, is_peers_fault
from conf.safety.redact import redact, redact_text
from conf.safety.writing import write_whole
from launch.memory import out_of_memory

USER_ERROR = PointsmanError.exit_code
INTERRUPTED = 128 + signal.SIGINT
DEBUG_VARIABLE = "POINTSMAN_DEBUG"
ERROR_FILE_VARIABLE = "TORCHELASTIC_ERROR_FILE"  # where torchrun looks for a rank's last words
ENDING_NOTE = "ending"  # file beside it, of a rank that ended well: the signal that stopped it, if one did
TIME_KEY = "nanoseconds"
CODE_KEY = "exit_code"
PEER_KEY = "peers_fault"  # the cause lies with another rank
ABSENT_KEY = "absent"  # ranks of which there was no sign after that
_SAME_WORDS_S = 1.0  # for the first rank of a machine to say what another one is about to say
UNEXPECTED = 1  # Python's exit code of an exception that nothing catches


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
        if not _said_by_first_rank(error):
            print(short_message(error), file=sys.stderr, flush=True)
        return error.exit_code
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
    deliberate = isinstance(error, PointsmanError)
    trace, words = "".join(traceback.format_exception(error)), message_of(error)
    now = time.time_ns()  # torch keeps whole seconds, too coarse to tell who failed first
    extra = {
        "py_callstack": words if deliberate else trace,  # torchrun prints it
        "traceback": trace,
        "timestamp": str(now // 10**9),
        TIME_KEY: now,
        CODE_KEY: error.exit_code if deliberate else UNEXPECTED,
        PEER_KEY: isinstance(error, RankLost) or is_peers_fault(words),
        ABSENT_KEY: list(error.absent) if isinstance(error, RankLost) else [],
    }
    _leave(Path(path), json.dumps(redact({"message": {"message": words, "extraInfo": extra}})))


def note_ending(reason: str | None) -> None:
    """Tell our agent, if there is one, why a rank that ends well was stopped: torch's hears only of failures.

    `reason` begins with the name of a signal; None: the rank was done.
    """
    if path := os.environ.get(ERROR_FILE_VARIABLE):
        _leave(Path(path).with_name(ENDING_NOTE), reason or "")


def _leave(path: Path, text: str) -> None:
    with suppress(OSError):  # losing the note must not hide the error itself
        write_whole(path, text)  # the agent may look, or end this process, at any moment


def message_of(error: BaseException) -> str:
    """Kind and text of an error, as a note has it."""
    return f"{type(error).__name__}: {error}"


def _said_by_first_rank(error: PointsmanError) -> bool:
    """Whether the first rank of this machine ends with the same words; it then says them for all."""
    path, rank = os.environ.get(ERROR_FILE_VARIABLE), os.environ.get("LOCAL_RANK", "0")
    if not path or rank == "0" or isinstance(error, RankLost):
        return False
    note = Path(path).parent.parent / "0" / Path(path).name
    end = time.monotonic() + _SAME_WORDS_S
    while not note.exists() and time.monotonic() < end:
        time.sleep(0.02)
    with suppress(OSError, ValueError):
        return json.loads(note.read_text())["message"]["message"] == redact_text(message_of(error))
    return False


def world_from_environment() -> tuple[int, int]:
    """(world size, ranks on this node) as torchrun and DeepSpeed set them; one rank when started by hand."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    return world, int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or world)
