"""The groups of presets: folders of YAML files below `conf/`, found by name alone: nothing is read, no Hydra needed."""

from __future__ import annotations

from functools import cache
from pathlib import Path

CONF_DIR = Path(__file__).resolve().parent.parent


@cache
def presets(group: str) -> tuple[str, ...]:
    """The presets of a group, e.g. ``model``; files that start with an underscore are parts of presets."""
    return tuple(sorted(f.stem for f in (CONF_DIR / group).glob("*.yaml") if not f.stem.startswith("_")))


@cache
def groups() -> tuple[str, ...]:
    """Every group with presets: model, moe, data, parallel, optim, schedule, train, logging, launch."""
    return tuple(sorted(d.name for d in CONF_DIR.iterdir() if d.is_dir() and presets(d.name)))
