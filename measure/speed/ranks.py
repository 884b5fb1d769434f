"""Starts the ranks of a benchmark through the launcher of `pointsman train` and reads what rank 0 measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from conf.errors import ConfigError, SetupError
from launch.identity import ROOT
from measure.speed.result import Row
from measure.speed.setup import Settings

# Set by whatever started us; ranks of our own would take them for theirs.
STALE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "GROUP_RANK")


def run_on_ranks(benchmark: str, settings: Settings) -> list[Row]:
    """Rows of `benchmark`, measured on `launch.nproc` ranks of this machine.

    Raises SetupError when a rank fails; what it said has been printed by then.
    """
    launch = settings.cfg.launch
    if launch.nodes != 1:
        raise ConfigError("launch.nodes", got=launch.nodes, needs="1: a benchmark measures this machine")
    with tempfile.TemporaryDirectory(prefix="pointsman-bench-") as folder:
        out = Path(folder) / "rows.json"
        work = [benchmark, str(out), str(settings.rounds), str(settings.threads), *settings.overrides]
        command = [sys.executable, "-m", "launch.agent", "--standalone", f"--nproc-per-node={launch.nproc}"]
        command += [f"--log-dir={folder}", *_quiet(launch.nproc), "-m", "measure.speed.rank", *work]
        done = subprocess.run(command, env=rank_environment(settings.threads), check=False)
        if done.returncode != 0:
            raise SetupError(f"bench {benchmark}: a rank ended with exit code {done.returncode}; what it said is above")
        return [Row.from_json(row) for row in json.loads(out.read_text(encoding="utf-8"))]


def rank_environment(threads: int) -> dict[str, str]:
    """This process's environment as ranks need it."""
    environment = {name: value for name, value in os.environ.items() if name not in STALE}
    search = dict.fromkeys([str(ROOT), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))])
    # A folder `data` or `model` where the command is run must not hide our packages.
    return {
        **environment,
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(search),
        "PYTHONSAFEPATH": "1",
    }


def _quiet(nproc: int) -> list[str]:
    """Only rank 0 speaks; what others say goes to files, whose end the launcher shows when one fails."""
    return ["--redirects=" + ",".join(f"{rank}:3" for rank in range(1, nproc))] if nproc > 1 else []
