"""A run folder with a log as `trainer.run` opens it, for tests of the places where metrics go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conf.compose import compose
from trainer.report.sinks.sink import Opening
from trainer.run_dir import RunDir


def opening(root: Path, *overrides: str, resume_step: int = 0, evaluates_again: bool = True) -> Opening:
    """What a sink is opened with, below `root`; without W&B unless `overrides` say so."""
    root.mkdir(parents=True, exist_ok=True)
    cfg = compose(["logging.wandb=off", *overrides])
    return Opening(run=RunDir(root=root), cfg=cfg, resume_step=resume_step, evaluates_again=evaluates_again)


def rows(path: Path) -> list[dict[str, Any]]:
    """What `metrics.jsonl` holds."""
    return [json.loads(line) for line in path.read_text().splitlines()]
