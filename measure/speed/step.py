"""`bench step`: full training steps of the configured model against its FLOP-matched dense twin, on every rank.

Both engines live in the same processes and take turns; the batch is random tokens without padding, already in memory,
and the learning rate is 0, so that every step costs the same.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from conf.compose import compose
from conf.derived.estimate import flops_per_sequence
from conf.derived.groups import micro_batch_size
from conf.derived.layers import NO_EXPERTS, layer_names
from conf.derived.topology import topology
from conf.reading.setting_files import merged
from conf.schema import RunConfig
from data.batch import EOS_ID, MicroBatch, StepBatch
from data.tasks.task import target_kinds
from data.text.vocabulary import appended
from measure.speed.result import Row
from measure.speed.setup import Settings
from measure.speed.timing import Clock, Work, clock_of, compare
from model.contract import Model
from parallel.engine.protocol import Engine
from parallel.mesh import collectives
from parallel.mesh.axes import Mesh
from trainer.report.metrics import Meter
from trainer.report.throughput import peak_flops
from trainer.session import build_initialised
from trainer.step import train_step


def run(settings: Settings, mesh: Mesh) -> Iterator[Row]:
    """One row, the same on every rank but for the clock."""
    cfg = settings.cfg
    twin = dense_twin(settings.overrides, world=mesh.world.size)
    works = [step_work(each, mesh, settings.device) for each in (cfg, twin)]
    clock = clock_in_step(mesh, settings.device)
    comparison = compare(*works, clock=clock, rounds=settings.rounds, repeats=1)
    tokens = cfg.train.global_batch * (cfg.data.encoder_length + cfg.data.decoder_length)
    flops = flops_per_sequence(cfg) * cfg.train.global_batch / comparison.ours_seconds
    numbers = {
        "tokens/s": tokens / comparison.ours_seconds,
        "twin's tokens/s": tokens / comparison.peer_seconds,
        "model TFLOP/s": flops / 1e12,
    }
    peak = peak_flops(settings.device)
    if peak is not None:
        numbers["MFU against the bf16 peak"] = flops / mesh.world.size / peak
    layout = f"tp {mesh.tp.size}, dp {mesh.dp.size}, ep {mesh.ep.size}, ZeRO-{cfg.parallel.zero}"
    yield Row(
        benchmark="step",
        case=f"{cfg.model.preset}, {cfg.moe.num_experts} experts, {mesh.world.size} ranks ({layout}), "
        f"{cfg.train.precision}",
        peer="dense twin",
        comparison=comparison,
        numbers=numbers,
    )


def dense_twin(overrides: tuple[str, ...], *, world: int) -> RunConfig:
    """The same run with one feed-forward layer in the place of every bank of experts."""
    kept = [line for line in overrides if not line.startswith("parallel.ep=")]
    return compose(merged(kept, NO_EXPERTS), world=(world, world))


def step_work(cfg: RunConfig, mesh: Mesh, device: torch.device, *, engine: Engine[Model] | None = None) -> Work:
    """A training step as the trainer takes those that it does not log: token counts, finite check and update.

    `engine` None: of a freshly built model.
    """
    engine = engine or build_initialised(cfg, mesh, device)
    batch = synthetic_batch(cfg, dp_rank=mesh.dp.rank)
    vocabulary = appended(cfg.data.tokenizer_vocab, cfg.data.sentinels)

    def work() -> object:
        meter = Meter(kinds=target_kinds(cfg.data, vocabulary), layer_names=layer_names(cfg))
        return train_step(
            engine, batch, meter, lr=0.0, stop=False, cfg=cfg, mesh=mesh, device=device, logs=lambda counts: False
        )

    return work


def synthetic_batch(cfg: RunConfig, *, dp_rank: int) -> StepBatch:
    """Random tokens without padding: this data-parallel rank's share of one global batch."""
    assert dp_rank < topology(cfg).dp, dp_rank
    size = micro_batch_size(cfg)
    random = np.random.default_rng((cfg.seed, dp_rank))
    micro = []
    for index in range(cfg.train.accumulation):
        encoder, targets = (
            random.integers(EOS_ID + 1, cfg.model.vocab_size, size=(size, length))
            for length in (cfg.data.encoder_length, cfg.data.decoder_length)
        )
        micro.append(
            MicroBatch(
                inputs_BL=encoder,
                targets_BT=targets,
                rows_B=np.arange(size) + (dp_rank * cfg.train.accumulation + index) * size,
            )
        )
    return StepBatch(step=0, epoch=0.0, micro=tuple(micro))


def clock_in_step(mesh: Mesh, device: torch.device) -> Clock:
    """The device's clock, started on all ranks at once."""
    seconds = clock_of(device)

    def timed(work: Work, repeats: int) -> float:
        collectives.barrier(mesh.control)
        return seconds(work, repeats)

    return timed
