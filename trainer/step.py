"""One optimizer step: count tokens, run micro-batches, agree that all is finite, update.

Shape suffixes: B sequences of a micro-batch, L encoder length, T decoder length.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from conf.errors import NonFiniteError
from conf.schema import RunConfig
from data.batch import MicroBatch, StepBatch
from model.losses import LossScale, micro_batch_loss
from parallel.engine.protocol import Engine
from parallel.mesh import collectives
from parallel.mesh.axes import Mesh
from parallel.rng import NoiseKey
from trainer.report.metrics import Meter


@dataclass(frozen=True, kw_only=True, slots=True)
class StepCounts:
    """Real tokens of the step's global batch, and whether some rank asks to stop after it."""

    target_tokens: int
    encoder_tokens: int
    stop: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorBatch:
    """A micro-batch on the device."""

    encoder_tokens_BL: Tensor
    decoder_inputs_BT: Tensor
    targets_BT: Tensor
    rows_B: Tensor


def to_device(batch: MicroBatch, device: torch.device) -> TensorBatch:
    """Copy a micro-batch's arrays to the device."""

    def move(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    return TensorBatch(
        encoder_tokens_BL=move(batch.encoder_tokens_BL),
        decoder_inputs_BT=move(batch.decoder_inputs_BT),
        targets_BT=move(batch.targets_BT),
        rows_B=move(batch.rows_B),
    )


def count_tokens(batch: StepBatch, mesh: Mesh, *, stop: bool = False) -> StepCounts:
    """Sum real tokens over the global batch on the control group: plain host numbers, no device sync.

    Tensor ranks hold the same sequences, hence the division by tp. Every rank learns of a stop request here.
    """
    counts = torch.zeros(3, dtype=torch.float64)
    counts[0] = sum(int((micro.targets_BT != 0).sum()) for micro in batch.micro)
    counts[1] = sum(int((micro.encoder_tokens_BL != 0).sum()) for micro in batch.micro)
    counts[2] = float(stop)
    collectives.all_reduce(counts, mesh.control)
    targets, encoder, stops = counts.tolist()
    return StepCounts(
        target_tokens=round(targets / mesh.tp.size),
        encoder_tokens=round(encoder / mesh.tp.size),
        stop=stops > 0,
    )


def run_micro_batches(
    engine: Engine,
    batch: StepBatch,
    counts: StepCounts,
    meter: Meter,
    *,
    cfg: RunConfig,
    mesh: Mesh,
    device: torch.device,
) -> None:
    """Forward and backward of every micro-batch (ADR 002)."""
    scale = LossScale(
        target_tokens=max(counts.target_tokens, 1),
        encoder_tokens=max(counts.encoder_tokens, 1),
        decoder_tokens=max(counts.target_tokens, 1),
        replicas=mesh.dp.size * len(batch.micro),
    )
    for micro in batch.micro:
        tensors = to_device(micro, device)
        noise = NoiseKey(seed=cfg.seed, step=batch.step, rows_B=tensors.rows_B)
        output = engine.forward(
            tensors.encoder_tokens_BL, tensors.decoder_inputs_BT, tensors.targets_BT, mode="train", noise=noise
        )
        parts = micro_batch_loss(output, scale, cfg.moe)
        engine.backward(parts.total)
        meter.add(output, tensors.targets_BT, parts)


def require_finite(engine: Engine, meter: Meter, batch: StepBatch, mesh: Mesh) -> None:
    """Raise `NonFiniteError` on every rank, before the update, when any rank's loss or gradients are not finite."""
    healthy = meter.is_finite() and engine.gradients_finite()
    flags = torch.tensor([0.0 if healthy else 1.0], dtype=torch.float64)
    collectives.all_reduce(flags, mesh.control)
    if flags.item() == 0:
        return
    engine.discard_gradients()
    raise NonFiniteError(
        f"step {batch.step + 1}: the loss or a gradient is not finite on {int(flags.item())} of "
        f"{mesh.world.size} ranks{'' if healthy else ', this one among them'}; no weight was changed. "
        "Try a lower schedule.lr, optim.clip_norm=1.0 or train.precision=fp32: the same command with the same name= "
        "continues from the last checkpoint."
    )


def train_step(
    engine: Engine,
    batch: StepBatch,
    meter: Meter,
    *,
    lr: float,
    stop: bool,
    cfg: RunConfig,
    mesh: Mesh,
    device: torch.device,
) -> tuple[StepCounts, float]:
    """One step; returns the global token counts and the gradient norm before clipping."""
    counts = count_tokens(batch, mesh, stop=stop)
    run_micro_batches(engine, batch, counts, meter, cfg=cfg, mesh=mesh, device=device)
    require_finite(engine, meter, batch, mesh)
    return counts, engine.step(lr).grad_norm
