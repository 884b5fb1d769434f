"""What a place where metrics go is: how it is opened, written and closed, and the row that announces it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from conf.schema import LoggingConfig, RunConfig

if TYPE_CHECKING:
    from trainer.run_dir import RunDir

Value = float | int | str | list[float]


class Sink(Protocol):
    """Somewhere metrics go. Trouble of its own must not stop the run: it is printed once, and the sink is done."""

    def write(self, step: int, metrics: Mapping[str, Value]) -> None:
        """Record one row; lists hold a number for each expert."""
        ...

    def close(self, *, failed: bool) -> None:
        """Flush; `failed` says whether the run ended with an error."""
        ...

    def where(self) -> list[str]:
        """Lines of the closing summary that say where it all is; asked for after `close`."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Opening:
    """What a sink may know of the run when it is opened, on rank 0."""

    run: RunDir
    cfg: RunConfig
    resume_step: int  # rows beyond it will be written again
    evaluates_again: bool  # whether the evaluation of `resume_step` itself will be


@dataclass(frozen=True, kw_only=True, slots=True)
class SinkKind:
    """One row of SINKS."""

    open: Callable[[Opening], Sink]
    wanted: Callable[[LoggingConfig], bool]
    package: str | None = None  # what it cannot do without, looked for before training
    remedy: str = ""  # what to type when the package is absent
