"""The run's folder and what is in it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from conf import compose
from conf.continued import OVERRIDES
from conf.reading.paths import CONFIG, user_path
from conf.reading.setting_files import settings_text
from conf.safety.redact import redact
from conf.safety.writing import write_whole
from conf.schema import RunConfig
from launch.naming import default_name
from parallel.mesh import collectives
from parallel.mesh.axes import Mesh
from parallel.mesh.consensus import on_main
from trainer.checkpoint.files import LOCK_FILE

Ending = Literal["done", "stopped"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunDir:
    """Paths of one run."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.root / CONFIG

    @property
    def overrides(self) -> Path:
        """Everything that was typed for the run, over all its starts."""
        return self.root / OVERRIDES

    @property
    def metrics(self) -> Path:
        """One JSON object a line."""
        return self.root / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Committed checkpoints, `step_00000200/` and so on."""
        return self.root / "checkpoints"

    @property
    def tokenizer(self) -> Path:
        """A copy of the tokenizer, so that the folder alone is enough to use the model."""
        return self.root / "tokenizer.model"

    @property
    def status(self) -> Path:
        """How the run ended, as JSON: what a scheduler's requeue decision reads."""
        return self.root / "status.json"


def open_run_dir(cfg: RunConfig, mesh: Mesh) -> RunDir:
    """Create the folder (collective). Rank 0 names it, so that all ranks agree although their clocks may not."""
    name = cfg.name or collectives.broadcast_object(default_name(cfg), mesh.control)
    run = RunDir(root=user_path(cfg.runs_dir) / name)
    on_main(lambda: run.checkpoints.mkdir(parents=True, exist_ok=True), mesh)
    return run


def discard_unstarted(run: RunDir) -> None:
    """Remove the folder of a run that failed before it wrote anything; one that holds something else stays."""
    if not run.config.exists():
        with suppress(OSError):
            (run.checkpoints / LOCK_FILE).unlink()
            run.checkpoints.rmdir()
            run.root.rmdir()


def write_status(
    run: RunDir, ending: Ending | Literal["running", "failed"], *, step: int, reason: str | None = None
) -> None:
    """Replace `status.json`. "running" is written too, so that a killed run does not show how an earlier one ended."""
    status = {"ending": ending, "step": step, "reason": redact(reason), "time": time.time()}
    write_whole(run.status, json.dumps(status) + "\n")


def write_config(run: RunDir, cfg: RunConfig, overrides: Sequence[str]) -> None:
    """Write the resolved configuration and what was typed for it; an older one of another content is kept beside it."""
    write_whole(run.overrides, settings_text(overrides))
    before = run.config.read_bytes() if run.config.exists() else None
    compose.dump(cfg, run.config)
    if before is not None and run.config.read_bytes() != before:
        write_whole(run.root / f"config.before-{time.strftime('%Y%m%d-%H%M%S')}.yaml", before)
