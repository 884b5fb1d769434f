"""Metrics to Weights & Biases: the trainer's side, which starts the process that does it and never waits for a server.

Rows are not handed over: the process reads `metrics.jsonl`, which is written first. A process that dies is followed by
one that records the same rows offline.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

from conf import compose
from conf.errors import ConfigError
from conf.safety import shell
from conf.safety.redact import is_secret_name, redact
from conf.safety.writing import append_to
from conf.schema import LoggingConfig
from trainer.report.sinks.sink import Opening, Value
from trainer.report.sinks.wandb_pieces import Piece, Pieces, read_pieces
from trainer.report.sinks.wandb_process import Order

logger = logging.getLogger(__name__)

Choice = Literal["auto", "online", "offline", "off"]
DEFAULT_PROJECT = "pointsman"
_ROOT = str(Path(__file__).resolve().parents[3])
_COMMAND = "import sys; sys.path.insert(0, sys.argv[1]); from trainer.report.sinks.wandb_process import serve; serve()"
_MODES: dict[str, Choice] = {
    "online": "online",
    "run": "online",
    "shared": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "off",
}
_NOT_IN_NAMES = "/\\#?%:"  # of a project or a run
_CONNECT_S = 10.0  # a run that has ended waits no longer for a server that never answered
_ATTEMPTS = 3
_RECORD_S = 60.0  # to write files offline: most of it is the start of Python on a busy machine


def wandb_choice(cfg: LoggingConfig) -> Choice:
    """What `logging.wandb` says; where that is `auto`, what WANDB_MODE says, if it is set.

    Raises ConfigError for a variable of W&B that its process would fail at.
    """
    choice = _choice(cfg)
    if choice != "off":
        _check_variables(cfg)
    return choice


def _check_variables(cfg: LoggingConfig) -> None:
    for name in ("WANDB_RUN_ID", *([] if cfg.wandb_project else ["WANDB_PROJECT"])):
        if set(value := os.environ.get(name, "")) & set(_NOT_IN_NAMES):
            needs = f"a name without {' '.join(_NOT_IN_NAMES)}"
            raise ConfigError(name, got=value, needs=needs, hint=f"unset {name}, or logging.wandb=off")
    url = os.environ.get("WANDB_BASE_URL", "")
    if url and not re.match(r"https?://[^/]", url):
        needs = "the address of a server, such as http://localhost:8080"
        raise ConfigError("WANDB_BASE_URL", got=url, needs=needs, hint="unset WANDB_BASE_URL, or logging.wandb=off")


def _choice(cfg: LoggingConfig) -> Choice:
    mode = os.environ.get("WANDB_MODE", "")
    if cfg.wandb != "auto" or not mode:
        return cfg.wandb
    if mode not in _MODES:
        raise ConfigError(
            "WANDB_MODE",
            got=mode,
            needs=f"one of {', '.join(_MODES)}, or to be unset",
            hint="logging.wandb=offline, which ranks above it",
        )
    return _MODES[mode]


def _environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What the process gets: no secrets but W&B's own, for W&B records every variable of Slurm, SLURM_JWT as well.

    It would also read WANDB_MODE again, above which a mode that was typed ranks.
    """
    return {
        name: value
        for name, value in environment.items()
        if name != "WANDB_MODE" and (name.startswith("WANDB_") or not is_secret_name(name))
    }


class WandbSink:
    """Weights & Biases, recorded by a process of its own."""

    def __init__(self, opening: Opening) -> None:
        """Starts the process; whether there is a server it finds out by itself. Raises ConfigError: WANDB_MODE."""
        run, logging_cfg = opening.run, opening.cfg.logging
        choice = wandb_choice(logging_cfg)
        assert choice != "off", "a sink nobody wants was opened"
        root = run.root.absolute()
        self._pieces = root / "wandb" / "pieces.json"
        self._log = self._pieces.with_name("process.log")
        before = read_pieces(self._pieces)
        self._old_pieces = len(before.pieces) if before else 0
        self._failures = 0
        self._order = Order(
            pieces=str(self._pieces),
            metrics=str(run.metrics.absolute()),
            offset=run.metrics.stat().st_size,
            mode=choice,
            project=redact(logging_cfg.wandb_project or os.environ.get("WANDB_PROJECT") or DEFAULT_PROJECT),
            entity=redact(logging_cfg.wandb_entity),
            name=root.name,
            folder=os.path.abspath(os.environ.get("WANDB_DIR") or root),
            config=compose.without_secrets(opening.cfg),
            trainer=os.getpid(),
        )
        self._watched = choice != "offline"  # until it is known whether there is a server
        self._process = self._start()

    def _start(self) -> subprocess.Popen[str] | None:
        try:
            self._pieces.parent.mkdir(parents=True, exist_ok=True)
            with append_to(self._log) as log:
                process = subprocess.Popen(
                    [sys.executable, "-c", _COMMAND, _ROOT],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    env=_environment(os.environ),
                    text=True,
                    start_new_session=True,
                )
        except OSError as error:
            self._warn(f"cannot be started ({error})")
            return None
        _tell(process, json.dumps(asdict(self._order)))
        return process

    def write(self, step: int, metrics: Mapping[str, Value]) -> None:
        """The row is in `metrics.jsonl` already; a process that died is followed by another."""
        if self._process is not None and self._process.poll() is not None:
            self._process = self._successor()
        if self._watched and (pieces := self._opened()):
            self._watched = False
            if pieces.note:
                logger.warning("Weights & Biases: recording offline (%s)", pieces.note)

    def close(self, *, failed: bool) -> None:
        """Wait for the process, for a bounded time; what it did not get through is recorded offline."""
        try:
            while self._process is not None and not self._finished(self._process, failed):
                self._process = self._successor()
        except KeyboardInterrupt:  # whoever presses Ctrl-C now has seen the end of the run and wants the prompt
            pass
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _finished(self, process: subprocess.Popen[str], failed: bool) -> bool:
        """Tell the process that the run is over; whether it recorded everything in time."""
        _tell(process, str(int(failed)))
        began = time.monotonic()
        while process.poll() is None:
            if time.monotonic() - began > (
                _RECORD_S if self._order.mode == "offline" or self._opened() else _CONNECT_S
            ):
                pieces = self._opened()
                return pieces is not None and pieces.pieces[-1].ending == "kept"
            time.sleep(0.05)
        return process.returncode == 0

    def _opened(self) -> Pieces | None:
        """The pieces, once the process has a W&B run, and so a file into which all rows go."""
        pieces = read_pieces(self._pieces)
        return pieces if pieces and len(pieces.pieces) > self._old_pieces else None

    def _successor(self) -> subprocess.Popen[str] | None:
        """After a process that failed or waits for a server: one that records the same rows, in the end offline.

        None after the third failure. One that died is followed by one of the same mode first: a scheduler's signal
        ends W&B's own processes, and an online run can go on where its rows on the server end.
        """
        assert self._process is not None
        is_late = self._process.poll() is None
        if is_late:
            self._process.kill()
            self._process.wait()
        self._failures += 1
        if self._failures == _ATTEMPTS:
            self._warn("is off for the rest of this run: its process failed repeatedly")
            return None
        pieces = self._opened()
        self._order = replace(
            self._order,
            mode="offline" if is_late or self._failures > 1 else self._order.mode,
            again=self._order.again or pieces is not None,
            note="the server did not answer" if is_late else "its process failed",
        )
        self._old_pieces = len(pieces.pieces) if pieces else self._old_pieces
        return self._start()

    def _warn(self, what: str) -> None:
        logger.warning("Weights & Biases %s, see %s; metrics.jsonl stays complete", what, self._log)

    def where(self) -> list[str]:
        """Where the run can be seen, and the command that uploads what is in files alone."""
        pieces = self._opened()
        if pieces is None:
            return [f"  W&B                nothing was recorded: see {_shown(self._log)}"]
        last = pieces.pieces[-1]
        kept = [piece for piece in pieces.pieces if piece.is_kept and not _is_synced(piece)]
        lines = [f"  W&B                {last.url}"] if last.mode == "online" else []
        if pieces.note:
            lines.append(f"  W&B                offline: {pieces.note} (more in {_shown(self._log)})")
        if kept:
            label = "offline" if kept[-1].mode == "offline" else "not sent"
            lines.append(f"  {f'W&B ({label})':<18} {_shown(Path(kept[-1].folder).parent)}   upload: {_upload(kept)}")
        return lines


def _tell(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    with suppress(OSError):  # a process that is gone is noticed where it is polled
        process.stdin.write(line + "\n")
        process.stdin.flush()


def _is_synced(piece: Piece) -> bool:
    """Whether `wandb sync` has left its mark beside the file."""
    return any(Path(piece.folder).glob("*.wandb.synced"))


def _upload(kept: list[Piece]) -> str:
    """The command; runs that were online at first are skipped by it unless it is told."""
    words = ["wandb", "sync"]
    if any(piece.mode == "online" for piece in kept):
        words.append("--include-online")
    return shell.line([*words, *(Path(_shown(Path(piece.folder))) for piece in kept)])


def _shown(path: Path) -> str:
    """Relative to the working directory where it lies below it."""
    with suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)
