"""torchrun with its failures told briefly: which rank failed first, and that rank's own last words.

Takes torchrun's arguments. What torchrun itself prints after a failure is its own traceback and a table without the
ranks' messages; the messages of ranks whose output went to files would be missed.
"""

from __future__ import annotations

import importlib
import logging
import os
import shutil
import signal
import socket
import sys
from collections.abc import Collection, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any

from conf.safety.streams import redact_streams
from launch.local import LOG_DIR_VARIABLE
from launch.process import (
    ABSENT_KEY,
    CODE_KEY,
    ENDING_NOTE,
    INTERRUPTED,
    PEER_KEY,
    TIME_KEY,
    UNEXPECTED,
    USER_ERROR,
)
from launch.ranks.bound import BOUND_VARIABLE
from launch.ranks.environment import is_launchers

TAIL_LINES = 20
_BY_KERNEL = {-signum for signum in (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)}
CALM_SECONDS = 60.0  # between a signal to the ranks and SIGKILL for those that have not ended


def main(argv: Sequence[str]) -> int:
    """Run the agent; the exit code is 0, that of the rank that failed first, or 128 + the signal that stopped us."""
    launcher: Any = importlib.import_module("torch.distributed.run")
    errors: Any = importlib.import_module("torch.distributed.elastic.multiprocessing.errors")
    processes: Any = importlib.import_module("torch.distributed.elastic.multiprocessing.api")
    meeting: Any = importlib.import_module("torch.distributed.elastic.rendezvous.api")
    # torch's pattern knows ranks of one digit; what reads the words that match it takes any number
    processes._MAPPING_REGEX = r"^(\d+:[0123],)*(\d+:[0123])$"
    news = News()
    news.listen()
    for name in [name for name in os.environ if is_launchers(name)]:
        del os.environ[name]
    os.environ[BOUND_VARIABLE] = str(os.getpid())  # the ranks look whether their parent is still this process
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(int(CALM_SECONDS)))
    argv = _own_folder(argv)
    log_dir = _log_dir(argv)
    try:
        # without the decorator that would log where it cannot leave a note for an agent of the agent
        getattr(launcher.main, "__wrapped__", launcher.main)([f"--signals-to-handle={_signals()}", *argv])
    except errors.ChildFailedError as failed:
        return report(failed.failures, log_dir=log_dir, ended=news.ended)
    except processes.SignalException as stopped:
        print(f"stopped by {stopped.sigval.name}", file=sys.stderr, flush=True)
        _remove_logs(news, log_dir)
        return 128 + int(stopped.sigval)
    except KeyboardInterrupt:  # before there were ranks
        print("interrupted", file=sys.stderr, flush=True)
        _remove_logs(news, log_dir)
        return INTERRUPTED
    except meeting.RendezvousError as error:
        print(f"error: launch.rdzv_endpoint: the agents did not meet: {error}", file=sys.stderr, flush=True)
        _remove_logs(news, log_dir)
        return USER_ERROR
    code = _stopped(log_dir)
    _remove_logs(news, log_dir)
    return code


class News(logging.Handler):
    """Tells in our words what torch's agent logs and a person must know; the rest of its log is told by `report`."""

    def __init__(self) -> None:
        super().__init__()
        self.remarkable = False  # then the ranks' output is kept
        self.ended: set[int] = set()  # process ids of ranks that did not end by themselves

    def listen(self) -> None:
        """Take the place of the agent's own output."""
        torchs = logging.getLogger("torch.distributed.elastic")
        torchs.propagate = False
        torchs.handlers = [self]
        for name in ("agent.server.api", "multiprocessing.api"):
            logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        """Restarts, and ranks that were killed because they did not end."""
        text = record.getMessage()
        if text.startswith(("Sending process", "Unable to shutdown process")) and isinstance(record.args, tuple):
            self.ended.add(int(str(record.args[0])))
        if "will restart worker group" in text:
            left = text.split("attempts left")[0].split(".")[-1].strip()
            self.tell(
                f"a rank failed; all ranks are restarted and continue at the last checkpoint ({left} restarts left)"
            )
        elif text.startswith("Unable to shutdown process"):
            self.tell("a rank did not end after the signal and was killed; what it was saving is lost")

    def tell(self, text: str) -> None:
        """Print `text` and keep the output of the ranks."""
        self.remarkable = True
        print(text, file=sys.stderr, flush=True)


def _signals() -> str:
    """What torch passes on to the ranks. Not SIGHUP where nohup has us ignore it: torch would undo that."""
    hangup = ["SIGHUP"] if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else []
    return ",".join(["SIGTERM", "SIGINT", "SIGQUIT", "SIGUSR1", *hangup])


def report(failures: dict[int, Any], *, log_dir: Path, ended: Collection[int] = ()) -> int:
    """Tell what failed, the cause last, where a person looks; return the exit code of the first rank that failed.

    `failures` are torch's `ProcessFailure`s by global rank, `ended` the processes that the agent had to end. Ranks
    that ended with the same words as the first share its entry; the rest, which as a rule lost their connection to
    it, get a line each.
    """
    absent = {rank for failure in failures.values() for rank in _extra(failure).get(ABSENT_KEY, ())}

    def blame(rank: int, failure: Any) -> Blame:
        if _extra(failure).get(PEER_KEY):
            return Blame.LOST_A_PEER
        if _note(failure) or failure.pid not in ended:
            return Blame.FAILED
        return Blame.HUNG if rank in absent or not absent else Blame.ENDED

    blames = {rank: blame(rank, failure) for rank, failure in failures.items()}
    ordered = sorted(failures.items(), key=lambda item: (blames[item[0]], failure_time(item[1]), item[0]))
    first, cause = ordered[0]
    hung = blames[first] == Blame.HUNG
    note = note_of(cause)
    alike = [rank for rank, failure in ordered if failure is cause or (note and note_of(failure) == note)]
    for rank, failure in ordered:
        if rank not in alike:
            print(f"rank {rank} ended after that: {ending(failure)}", file=sys.stderr)
    print(f"output of the ranks: {log_dir}", file=sys.stderr)
    who = f"rank {alike[0]}" if len(alike) == 1 else "ranks " + ", ".join(map(str, sorted(alike)))
    how = f"hung, and the others waited for it in vain; {ending(cause)}" if hung else ending(cause)
    words = [] if _was_printed([failures[rank] for rank in alike]) else last_words(cause, log_dir)
    print("\n  ".join([f"{who} failed: {how}", *words]), file=sys.stderr, flush=True)
    code = UNEXPECTED if hung else exit_code(cause)
    return code if code > 0 else 128 - code


class Blame(IntEnum):
    """What a failure says about its rank, the worst first."""

    FAILED = 0  # by itself
    HUNG = 1  # the others did not reach it, and the agent had to end it
    LOST_A_PEER = 2
    ENDED = 3  # by the agent, because of others


def _was_printed(failures: Sequence[Any]) -> bool:
    """Whether their message is on the terminal: the first rank of a machine writes there, and for all of it."""
    first = [failure for failure in failures if failure.local_rank == 0]
    return any(note_of(failure) and exit_code(failure) == USER_ERROR for failure in first)


def _stopped(log_dir: Path) -> int:
    """Exit code of ranks that ended well: 0, or that of the signal which one of them got and told the others of."""
    notes = sorted(log_dir.glob(f"*/attempt_*/*/{ENDING_NOTE}"), key=lambda path: path.stat().st_mtime)
    reason = notes[-1].read_text() if notes else ""
    if not reason:
        return 0
    print(f"stopped by {reason}", file=sys.stderr, flush=True)
    return 128 + signal.Signals[reason.split()[0]]


def failure_time(failure: Any) -> int:
    """Nanoseconds since the epoch: of the rank's note, or of the second in which the agent saw that it had ended.

    The kernel's signals leave no note, and come from no other rank's end: such a rank gets a second's start over the
    notes of those that lost their connection to it.
    """
    noted = _extra(failure).get(TIME_KEY)
    return noted if noted is not None else (failure.timestamp - (failure.exitcode in _BY_KERNEL)) * 10**9


def exit_code(failure: Any) -> int:
    """As in subprocess: negative for a signal.

    Where a rank left a note, the code it was about to end with: what met it on the way out, the agent's SIGTERM or an
    abort of some library's threads, is not how it failed.
    """
    return _extra(failure).get(CODE_KEY, failure.exitcode)


def ending(failure: Any) -> str:
    """How the process ended."""
    code = exit_code(failure)
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def last_words(failure: Any, log_dir: Path) -> list[str]:
    """Lines that say why: the note of a deliberate error, else the end of stderr, else the note's summary.

    The stderr of local rank 0 goes to the terminal and is kept nowhere.
    """
    logs = sorted(log_dir.glob(f"*/attempt_*/{failure.local_rank}/stderr.log"), key=lambda path: path.stat().st_mtime)
    note = note_of(failure)
    if logs and not (note and exit_code(failure) == USER_ERROR):
        return logs[-1].read_text(errors="replace").splitlines()[-TAIL_LINES:]
    return note or (["its message is above"] if exit_code(failure) > 0 else [])


def note_of(failure: Any) -> list[str]:
    """Lines of the message a rank left for the agent; none where it left nothing."""
    return str(_note(failure).get("message", "")).splitlines()


def _extra(failure: Any) -> dict[str, Any]:
    return _note(failure).get("extraInfo", {})


def _note(failure: Any) -> dict[str, Any]:
    message = failure.error_file_data.get("message")
    return message if isinstance(message, dict) else {}


def _own_folder(argv: Sequence[str]) -> list[str]:
    """`argv` with a log folder of this machine's own: on a shared disk agents would read each other's ranks."""
    if "--standalone" in argv:
        return list(argv)
    return [f"{word}/{socket.gethostname()}" if word.startswith("--log-dir=") else word for word in argv]


def _log_dir(argv: Sequence[str]) -> Path:
    return Path(next((word.partition("=")[2] for word in argv if word.startswith("--log-dir=")), "."))


def _remove_logs(news: News, log_dir: Path) -> None:
    """Remove the folder that was made for this run's output, unless somebody will want to look into it."""
    if news.remarkable:
        print(f"output of the ranks: {log_dir}", file=sys.stderr, flush=True)
    elif (logs := os.environ.get(LOG_DIR_VARIABLE)) and log_dir.is_relative_to(logs):
        shutil.rmtree(logs, ignore_errors=True)


if __name__ == "__main__":
    redact_streams()
    sys.exit(main(sys.argv[1:]))
