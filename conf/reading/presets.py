"""The groups of presets: folders of YAML files below `conf/`, found by name alone: nothing is read, no Hydra needed."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

CONF_DIR = Path(__file__).resolve().parent.parent


@cache
def presets(group: str) -> tuple[str, ...]:
    """The presets of a group, e.g. ``model``; files that start with an underscore are parts of presets."""
    names = (file.stem for file in (CONF_DIR / group).glob("*.yaml"))
    return tuple(sorted((name for name in names if not name.startswith("_")), key=_natural))


@cache
def groups() -> tuple[str, ...]:
    """Every group with presets: model, moe, data, parallel, optim, schedule, train, logging, launch."""
    return tuple(sorted(d.name for d in CONF_DIR.iterdir() if d.is_dir() and presets(d.name)))


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts base_8 before base_16."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
