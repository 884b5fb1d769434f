"""Requests to stop: SIGTERM, SIGUSR1 (Slurm's warning), SIGHUP (a terminal that is closed) and the first Ctrl-C end the
run after the current step."""

from __future__ import annotations

import signal
from types import FrameType

from launch.process import has_launcher

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)


class StopRequest:
    """Set by a signal on this rank; the loop tells the others in the step's first reduction."""

    def __init__(self) -> None:
        self.name: str | None = None

    def install(self) -> None:
        """Take over the signals, but for one that nohup ignores. A second SIGINT interrupts at once: with a
        launcher it is the launcher's to send, and torch's sends SIGTERM instead."""
        for number in _SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    @property
    def requested(self) -> bool:
        """Whether this rank was asked to stop."""
        return self.name is not None

    @property
    def exit_code(self) -> int:
        """Of a run that was stopped: 128 + signal; 0 below a launcher, which reports the signal itself and would
        take anything else for a failure."""
        return 0 if self.name is None or has_launcher() else 128 + signal.Signals[self.name]
