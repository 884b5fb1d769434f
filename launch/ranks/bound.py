"""Processes that must not outlive the one that started them.

The first thing that a rank does; so nothing is imported here but the standard library.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

BOUND_VARIABLE = "POINTSMAN_END_WITH_PARENT"  # process id of a starter that its children must not outlive
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def has_launcher() -> bool:
    """Whether torchrun or another launcher started this process; a rank that is alone has none.

    Sure once `launch.ranks.surroundings` has dropped what other launchers left.
    """
    return "TORCHELASTIC_RUN_ID" in os.environ or os.environ.get("WORLD_SIZE", "1") != "1"


def is_bound() -> bool:
    """Whether this rank is to end with what started it: a launcher that watches its ranks, or a shell that nobody told
    to let it go on. A rank that is alone, and one that was started by hand under nohup, outlive their shell."""
    return has_launcher() and (_is_watched() or signal.getsignal(signal.SIGHUP) != signal.SIG_IGN)


def _is_watched() -> bool:
    """By torchrun's agent or DeepSpeed's launcher, which a person who starts ranks one by one does not have."""
    return "TORCHELASTIC_RUN_ID" in os.environ or "CROSS_SIZE" in os.environ


def end_with_starter() -> None:
    """End by SIGTERM with the process that named itself in BOUND_VARIABLE, if one did and this is its child.

    Holds through exec: what this process becomes is bound as well.
    """
    if (starter := os.environ.pop(BOUND_VARIABLE, None)) is not None:
        die_with_parent(int(starter), signal.SIGTERM)


def die_with_launcher() -> bool:
    """Bind a rank to its launcher by SIGKILL: one that is killed with SIGKILL cannot stop its ranks, and left alone
    they would go on writing into the run's folder.

    Our agent gives its process id, so that its end is noticed however early it comes. Other launchers do not: the
    parent of this moment is taken for them, unless it is a process 1 that has nothing to do with this one. The answer
    is whether the rank is bound (`is_bound`).
    """
    agent = os.environ.pop(BOUND_VARIABLE, None)
    if agent is None and not is_bound():
        return False
    adopted = _is_watched() and os.getppid() == 1 and os.getsid(0) not in (os.getpid(), os.getsid(1))
    die_with_parent(int(agent) if agent else 0 if adopted else os.getppid(), signal.SIGKILL)
    return True


def die_with_parent(parent: int, signum: signal.Signals) -> None:
    """Ask the kernel for `signum` when the process `parent`, which started this one, ends, however it ends.

    The kernel tells of an end from now on; one before shows in the parent, which is then another. Linux only;
    elsewhere only that is noticed.
    """
    _ask_kernel(signum)
    if os.getppid() != parent:
        os.kill(os.getpid(), signum)


def outlive_parent() -> None:
    """Take `die_with_parent` back."""
    _ask_kernel(0)


def _ask_kernel(signum: int) -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signum, 0, 0, 0)
