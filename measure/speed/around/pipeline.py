"""`bench pipeline`: batches made by one process against the step that takes them.

Below 1 one worker keeps a rank busy; the ratio is the number of `data.workers` that it takes. The loader reads the
configured data, prepared before anything is measured, and makes its batches in the measuring process itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from data.corpus import open_corpus
from data.loader import build_loader
from measure.speed.result import Row
from measure.speed.setup import Settings
from measure.speed.step import clock_in_step, step_work
from measure.speed.timing import compare
from parallel.mesh.axes import Mesh


def run(settings: Settings, mesh: Mesh) -> Iterator[Row]:
    """One row: a rank's batch of a step over a step on all ranks."""
    cfg = replace(settings.cfg, data=replace(settings.cfg.data, workers=0))
    step = step_work(cfg, mesh, settings.device)
    with build_loader(open_corpus(cfg), cfg, split="train", dp_rank=mesh.dp.rank, dp_size=mesh.dp.size) as loader:
        clock = clock_in_step(mesh, settings.device)
        comparison = compare(lambda: next(loader), step, clock=clock, rounds=settings.rounds, repeats=4)
    positions = cfg.train.global_batch // mesh.dp.size * (cfg.data.encoder_length + cfg.data.decoder_length)
    yield Row(
        benchmark="pipeline",
        case=f"a rank's batch of {cfg.train.global_batch // mesh.dp.size} windows, data={cfg.data.source}",
        peer=f"a step on {mesh.world.size} ranks",
        comparison=comparison,
        numbers={"tokens/s of one process": positions / comparison.ours_seconds},
    )
