"""Every error Pointsman raises on purpose, in one tree.

A `PointsmanError` is something a user can act on: its text names the field or file, what was found, what is needed
and what to try. Internal mistakes are `assert`s. `ConfigError` and `DataError` are `ValueError`s as well, so that
callers that know nothing of Pointsman can catch them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

# How gloo, NCCL and torch's stores say that another rank ended or did not come. What gloo says of this machine's own
# network, and of sizes that differ, is not among it.
_PEERS_FAULT = re.compile(
    r"gloo/(?!transport/\w+/device)|onnection closed|onnection reset|monitoredBarrier|not every rank came|"
    r"ncclRemoteError|communicator was aborted|DistNetworkError|DistStoreError"
)


def is_peers_fault(text: str) -> bool:
    """Whether the words of an error say that another rank has ended or does not answer."""
    return _PEERS_FAULT.search(text) is not None and "enforce fail" not in text


_LONGEST = 1000


class PointsmanError(Exception):
    """Base of every deliberate error."""

    exit_code: ClassVar[int] = 2  # of a process that ends with it: something the user can mend


class ConfigError(PointsmanError, ValueError):
    """A setting is wrong. Text: ``path.to.field: got X; needs Y; try Z``."""

    def __init__(self, field: str, *, got: object, needs: str, hint: str = "") -> None:
        self.field, self.got, self.needs, self.hint = field, got, needs, hint
        text = f"{_short(field)}: got {_short(repr(got))}; needs {needs}"
        super().__init__(f"{text}; try {hint}" if hint else text)


def _short(text: str) -> str:
    """The begin of what fills screens: a value that was pasted by mistake, a number of thousands of digits."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}.. ({len(text):,} characters)"


class ConfigErrors(PointsmanError, ValueError):
    """Several settings are wrong; all of them are listed, so that one run of the command finds them all."""

    def __init__(self, errors: list[ConfigError]) -> None:
        self.errors = tuple(errors)
        super().__init__("\n".join(str(error) for error in errors))


def within(origin: str, error: ConfigError | ConfigErrors) -> ConfigError | ConfigErrors:
    """The same said of a file of settings: each of its fields is named with `origin`, where it is not already."""
    errors = error.errors if isinstance(error, ConfigErrors) else (error,)
    named = [
        one
        if one.field.startswith(origin)
        else ConfigError(f"{origin}: {one.field}", got=one.got, needs=one.needs, hint=one.hint)
        for one in errors
    ]
    return named[0] if len(named) == 1 else ConfigErrors(named)


class DataError(PointsmanError, ValueError):
    """A file, a shard or a row of data cannot be used; the text names it."""


class CheckpointError(PointsmanError, RuntimeError):
    """A checkpoint cannot be written, or none that is whole can be read."""


class RankDisagreement(PointsmanError, RuntimeError):
    """Ranks that must agree (on sizes, a step, a decision) do not; raised on every rank before data moves."""


class NonFiniteError(PointsmanError, ArithmeticError):
    """The loss or a gradient is not finite; raised on every rank before the update, so weights are untouched."""


class StudyError(PointsmanError, RuntimeError):
    """A run of a study did not end as it should; the text has the end of its output."""


class RanksFailed(PointsmanError, RuntimeError):
    """A rank that a command started for itself raised, died or hung; the text says which one first, and how."""


class RankLost(PointsmanError, RuntimeError):
    """This rank could not go on because another one, or a launcher, has ended or hangs; the cause is there."""

    exit_code: ClassVar[int] = 1

    def __init__(self, text: str, *, absent: Sequence[int] = ()) -> None:
        self.absent = tuple(absent)  # ranks of which there was no sign any more
        super().__init__(text)


class SetupError(PointsmanError, RuntimeError):
    """The machine, an installed package or a foreign package of the same name makes the run impossible."""
