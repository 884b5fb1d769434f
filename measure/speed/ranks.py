"""Benchmarks that need ranks: they run on `launch.nproc` ranks of this machine, and rank 0's rows are taken."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace

from conf.errors import ConfigError
from launch.ranks.allocator import allocator_environment
from launch.ranks.child import Seat
from launch.ranks.environment import clean_environment
from launch.ranks.pool import RankPool
from measure.speed import exchange, step
from measure.speed.around import pipeline
from measure.speed.peers import generation
from measure.speed.peers import run as peers
from measure.speed.result import Row
from measure.speed.setup import Settings
from parallel.mesh.axes import Mesh
from parallel.mesh.groups import meeting
from trainer.device import local_device, make_repeatable

BENCHMARKS: dict[str, Callable[[Settings, Mesh], Iterator[Row]]] = {
    "step": step.run,
    "exchange": exchange.run,
    "peers": peers.run,
    "generation": generation.run,
    "pipeline": pipeline.run,
}


def run_on_ranks(benchmark: str, settings: Settings) -> list[Row]:
    """Rows of `benchmark`. Raises RanksFailed when a rank fails."""
    launch = settings.cfg.launch
    if launch.nodes != 1:
        raise ConfigError("launch.nodes", got=launch.nodes, needs="1: a benchmark measures this machine")
    environment = clean_environment(os.environ) | allocator_environment(os.environ)
    environment["OMP_NUM_THREADS"] = str(settings.threads)
    # New processes, as those of a training run: a fork of one that has computed may lose its threads.
    with RankPool(launch.nproc, environment=environment, preload=(__name__,), start="spawn") as pool:
        return pool.run(_measure, benchmark, settings)[0]


def _measure(seat: Seat, benchmark: str, settings: Settings) -> list[Row]:
    device = local_device(settings.cfg)
    make_repeatable(device)  # as in a training run
    with meeting(settings.cfg.parallel, **seat._asdict()) as mesh:
        return list(BENCHMARKS[benchmark](replace(settings, device=device), mesh))
