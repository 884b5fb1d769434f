"""The environment of processes that a command starts: ranks, and whole runs that start ranks of their own."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from launch.identity import ROOT

# Set by whatever launched us; inherited by ranks of our own they would name the wrong world.
STALE = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "LOCAL_SIZE",
    "CROSS_RANK",
    "CROSS_SIZE",
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
    "ROLE_RANK",
    "ROLE_WORLD_SIZE",
    "ROLE_NAME",
    "MASTER_ADDR",
    "MASTER_PORT",
)
OF_TORCHRUN = "PET_"  # torchrun takes options from variables that begin so


def is_launchers(name: str) -> bool:
    """Whether a launcher sets the variable `name`, for its ranks or for torchrun."""
    return name in STALE or name.startswith(("TORCHELASTIC_", OF_TORCHRUN))


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` without what an outer launcher set, and with our packages found first."""
    env = {n: v for n, v in environment.items() if not is_launchers(n)}
    env["PYTHONSAFEPATH"] = "1"  # a folder `data` or `model` in the working directory must not hide our packages
    if (search := module_search_path(environment.get("PYTHONPATH", ""))) is not None:
        env["PYTHONPATH"] = search
    return env


def module_search_path(inherited: str, *, root: Path = ROOT) -> str | None:
    """PYTHONPATH with which ranks find our packages; `None` where they are installed among all others."""
    if root in (Path(sysconfig.get_paths()[key]).resolve() for key in ("purelib", "platlib")):
        return None
    return os.pathsep.join(dict.fromkeys([str(root), *filter(None, inherited.split(os.pathsep))]))
