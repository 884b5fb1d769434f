"""Runs a list of ordinary training runs, some at a time, and never one that is finished.

Each run is the command `pointsman train` in a process of its own, so that a study can measure nothing that a user could
not train. A study that was interrupted is continued by the same command: finished runs are recognised by their
folder, half-finished ones go on from their last checkpoint.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conf.compose import compose, load, to_dict
from conf.errors import ConfigError, StudyError
from conf.schema import RunConfig
from launch.local import train_in_background
from trainer.run_dir import RunDir

_POLL_S = 0.5
_STOP_S = 120  # a run that is told to stop saves a checkpoint first
# What may differ between a finished run and the one asked for: it decides neither losses nor what is compared.
_FREE = (
    "name", "runs_dir", "logging", "launch", "train.keep_last", "train.save_every", "train.log_every",
    "data.cache_dir", "data.workers", "data.prepare_workers",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One run of a grid."""

    name: str  # of its folder
    overrides: tuple[str, ...]  # all but name and runs_dir

    def run(self, out: Path) -> RunDir:
        """Its folder below the study's."""
        return RunDir(root=out / self.name)

    def arguments(self, out: Path) -> list[str]:
        """The overrides of `pointsman train`."""
        return [*self.overrides, f"name={self.name}", f"runs_dir={out}"]


def run_grid(cells: Sequence[Cell], out: Path, *, at_once: int, say: Callable[[str], None]) -> None:
    """Train every cell that is not finished, `at_once` side by side.

    Raises:
        ConfigError: a folder of `out` holds another run than its cell asks for; nothing has been started then.
        StudyError: a run failed. The others are stopped (they save) and the same command continues them.
    """
    wanted = {cell.name: compose(cell.arguments(out)) for cell in cells}
    waiting = [cell for cell in cells if not is_finished(cell.run(out), wanted[cell.name])]
    say(f"{len(cells)} runs in {out}: {len(cells) - len(waiting)} finished, {len(waiting)} to do, {at_once} at a time")
    running: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                cell = waiting.pop(0)
                running[cell.name] = (train_in_background(cell.arguments(out), _log(out, cell.name)), time.monotonic())
            time.sleep(_POLL_S)
            for name in [name for name, (process, _) in running.items() if process.poll() is not None]:
                process, began = running.pop(name)
                _check_ending(name, process.returncode, RunDir(root=out / name), wanted[name], out)
                say(f"{name}: done in {time.monotonic() - began:.0f} s; {len(waiting) + len(running)} left")
    finally:
        _stop(process for process, _ in running.values())


def is_finished(run: RunDir, wanted: RunConfig) -> bool:
    """Whether `run` is the run that is wanted, trained to its end.

    Raises ConfigError, naming the setting, when the folder holds another run: mixing two studies in one page would be
    worse than any error. A shorter one of the same settings is not another run; it is continued.
    """
    if not run.config.exists():
        return False
    found = load(run.config)
    for field, before, now in _differences(to_dict(found), to_dict(wanted)):
        if field == "train.steps" and before < now:
            continue
        raise ConfigError(
            "--out",
            got=f"{run.root}, a run with {field}={before}",
            needs=f"{field}={now}, as this study asks for",
            hint="another folder, or the arguments of the study that filled this one",
        )
    if not run.status.exists():
        return False
    status = json.loads(run.status.read_text(encoding="utf-8"))
    return status["ending"] == "done" and status["step"] == wanted.train.steps


def _differences(found: dict[str, Any], wanted: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any, Any]]:
    for key in sorted({*found, *wanted}):
        name, before, now = f"{path}{key}", found.get(key), wanted.get(key)
        if name in _FREE or before == now:
            continue
        if isinstance(before, dict) and isinstance(now, dict):
            yield from _differences(before, now, f"{name}.")
        else:
            yield name, before, now


def _log(out: Path, name: str) -> Path:
    return out / f"{name}.log"


def _check_ending(name: str, code: int, run: RunDir, wanted: RunConfig, out: Path) -> None:
    if code == 0 and is_finished(run, wanted):
        return
    what = "was stopped before its end" if code == 0 or code > 128 else f"failed with exit code {code}"
    log = _log(out, name)
    last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:]
    raise StudyError(
        f"run {name} {what}; the end of {log}:\n" + "\n".join(last) + "\nthe same command continues the study"
    )


def _stop(processes: Iterator[subprocess.Popen[bytes]]) -> None:
    """SIGTERM, on which a run saves a checkpoint; SIGKILL for one that does not end."""
    left = list(processes)
    for process in left:
        process.terminate()
    for process in left:
        try:
            process.wait(timeout=_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
