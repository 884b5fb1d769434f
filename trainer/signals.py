"""Requests to stop: SIGTERM, SIGUSR1 (Slurm's warning), SIGHUP (a terminal that is closed) and the first Ctrl-C end the
run after the current step. The end of this rank's launcher ends it there too, but is nobody's request."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType

from conf.errors import RankLost
from launch.process import note_ending
from launch.ranks.bound import has_launcher, is_bound, outlive_parent
from parallel.mesh.axes import Mesh
from parallel.mesh.collectives import gather_objects
from parallel.mesh.consensus import ranks_named

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
_LOOK_S = 0.5
_PATIENCE_S = 60.0  # for a rank without launcher to save and end, unless TORCH_ELASTIC_SHUTDOWN_TIMEOUT says otherwise


class StopRequest:
    """Set by a signal on this rank; the loop tells the others in the step's first reduction."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.reason: str | None = None  # why the run stopped, once all ranks know it (`agree`)
        self._launcher_gone = False

    def install(self) -> None:
        """Take over the signals, but for one that nohup ignores. A second SIGINT interrupts at once: with a
        launcher it is the launcher's to send, and torch's sends SIGTERM instead."""
        for number in _SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._on_signal)
        if is_bound():
            threading.Thread(target=self._watch, args=(os.getppid(),), name="launcher", daemon=True).start()
            outlive_parent()  # from here on a launcher that ends costs no step that was taken

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _watch(self, launcher: int) -> None:
        """Notice that the launcher has ended; a rank that then hangs has nobody else who ends it."""
        while os.getppid() == launcher:
            time.sleep(_LOOK_S)
        self._launcher_gone = True
        time.sleep(float(os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", _PATIENCE_S)))
        os.kill(os.getpid(), signal.SIGKILL)

    @property
    def requested(self) -> bool:
        """Whether this rank has a reason to stop."""
        return self.name is not None or self._launcher_gone

    def agree(self, mesh: Mesh) -> None:
        """Collective, after a stop: learn why. Raises RankLost on every rank where one has lost its launcher."""
        told = gather_objects([self.name, self._launcher_gone], mesh.control)
        names = {rank: name for rank, (name, _) in enumerate(told) if name is not None}
        if lost := [rank for rank, (_, gone) in enumerate(told) if gone]:
            raise RankLost(
                f"the launcher of {ranks_named(lost)} has ended without its ranks; what was trained is saved, and the "
                "same command with the same name= continues it"
            )
        name = next(iter(names.values()))
        self.reason = name if len(names) == mesh.world.size else f"{name} to {ranks_named([*names])}"

    @property
    def exit_code(self) -> int:
        """Of a run that ended well: 0, or 128 + the signal that stopped it. Below a launcher 0 in any case: it would
        take anything else for a failure, and ours reads the note instead."""
        note_ending(self.reason)
        return 0 if self.reason is None or has_launcher() else 128 + signal.Signals[self.reason.split()[0]]
