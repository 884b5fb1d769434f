"""Requests to stop: SIGTERM, SIGUSR1 (Slurm's warning) and the first Ctrl-C end the run after the current step."""

from __future__ import annotations

import signal
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """Set by a signal on this rank; the loop tells the others in the step's first reduction."""

    def __init__(self) -> None:
        self.name: str | None = None

    def install(self) -> None:
        """Take over the signals. A second Ctrl-C interrupts at once."""
        for number in _SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    @property
    def requested(self) -> bool:
        """Whether this rank was asked to stop."""
        return self.name is not None
