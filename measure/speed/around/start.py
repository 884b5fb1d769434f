"""`bench start`: how long commands take until they can work, as whole processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

from launch.ranks.environment import clean_environment
from launch.ranks.server import TRAINING
from measure.speed.result import Row
from measure.speed.setup import Settings
from measure.speed.timing import Work, clock_of, compare

COMMAND = ("-m", "launch.cli")
NOTHING = ("python that does nothing", ("-c", "pass"))
TORCH = ("import torch", ("-c", "import torch"))
# What starts, by its arguments to python, and what it is held against.
STARTS = (
    ("pointsman --help", (*COMMAND, "--help"), NOTHING),
    ("pointsman config", (*COMMAND, "config"), NOTHING),
    ("what a rank imports", ("-c", "import " + ", ".join(TRAINING)), TORCH),
)


def run(settings: Settings) -> Iterator[Row]:
    """A row for each start."""
    for case, arguments, (peer, theirs) in STARTS:
        comparison = compare(
            _process(arguments), _process(theirs), clock=clock_of(settings.device), rounds=settings.rounds, repeats=1
        )
        yield Row(benchmark="start", case=case, peer=peer, comparison=comparison)


def _process(arguments: tuple[str, ...]) -> Work:
    environment = clean_environment(os.environ)

    def work() -> object:
        quiet = subprocess.DEVNULL
        return subprocess.run(
            [sys.executable, *arguments], env=environment, stdout=quiet, stderr=quiet, check=True, timeout=300
        )

    return work
