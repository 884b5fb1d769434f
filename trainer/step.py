"""One optimizer step: count tokens, run micro-batches, agree that all is finite, update.

Shape suffixes: B sequences of a micro-batch, L input length, T target length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from conf.errors import NonFiniteError
from conf.schema import RunConfig
from data.batch import MicroBatch, StepBatch
from model.contract import Model
from model.losses import LossScale, micro_batch_loss
from parallel.engine.protocol import Engine
from parallel.mesh import collectives
from parallel.mesh.axes import Mesh
from parallel.rng import NoiseKey
from trainer.report.metrics import Meter


@dataclass(frozen=True, kw_only=True, slots=True)
class StepCounts:
    """Real tokens of the step's global batch, and whether some rank asks to stop after it."""

    inputs: int
    targets: int
    stop: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorBatch:
    """A micro-batch on the device."""

    inputs_BL: Tensor
    targets_BT: Tensor
    rows_B: Tensor


def to_device(batch: MicroBatch, device: torch.device) -> TensorBatch:
    """Copy a micro-batch's arrays to the device."""

    def move(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    return TensorBatch(inputs_BL=move(batch.inputs_BL), targets_BT=move(batch.targets_BT), rows_B=move(batch.rows_B))


def count_tokens(batch: StepBatch, mesh: Mesh, *, stop: bool = False) -> StepCounts:
    """Sum real tokens over the global batch on the control group: plain host numbers, no device sync.

    Tensor ranks hold the same sequences, hence the division by tp. Every rank learns of a stop request here.
    """
    counts = torch.tensor([batch.real_inputs, batch.real_targets, float(stop)], dtype=torch.float64)
    collectives.all_reduce(counts, mesh.control)
    inputs, targets, stops = counts.tolist()
    return StepCounts(inputs=round(inputs / mesh.tp.size), targets=round(targets / mesh.tp.size), stop=stops > 0)


def loss_scale(model: Model, counts: StepCounts, *, replicas: int) -> LossScale:
    """What divides the losses of a step with these tokens, over so many ranks x micro-batches."""
    routed = model.router_tokens(inputs=counts.inputs, targets=counts.targets)
    return LossScale(
        target_tokens=max(counts.targets, 1),
        router_tokens={stack: max(tokens, 1) for stack, tokens in routed.items()},
        replicas=replicas,
    )


def run_micro_batches(
    engine: Engine[Model],
    batch: StepBatch,
    counts: StepCounts,
    meter: Meter,
    *,
    cfg: RunConfig,
    mesh: Mesh,
    device: torch.device,
) -> None:
    """Forward and backward of every micro-batch (ADR 002)."""
    scale = loss_scale(engine.module, counts, replicas=mesh.dp.size * len(batch.micro))
    for micro in batch.micro:
        tensors = to_device(micro, device)
        noise = NoiseKey(seed=cfg.seed, step=batch.step, rows_B=tensors.rows_B)
        output = engine.module(tensors.inputs_BL, tensors.targets_BT, mode="train", noise=noise)
        parts = micro_batch_loss(output, scale, cfg.moe)
        engine.backward(parts.total)
        meter.add(output, tensors.targets_BT, parts)


def require_finite(engine: Engine[Model], meter: Meter, batch: StepBatch, mesh: Mesh) -> None:
    """Raise `NonFiniteError` on every rank, before the update, when any rank's loss or gradients are not finite."""
    healthy = bool(meter.finite() & engine.gradients_finite())  # waits for the device, once for both
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
    engine: Engine[Model],
    batch: StepBatch,
    meter: Meter,
    *,
    lr: float,
    stop: bool,
    cfg: RunConfig,
    mesh: Mesh,
    device: torch.device,
    logs: Callable[[StepCounts], bool] = lambda counts: True,
) -> tuple[StepCounts, float]:
    """One step; returns the global token counts and the gradient norm before clipping.

    `logs` says whether the meter will be read; where not, no statistics of routing are taken.
    """
    counts = count_tokens(batch, mesh, stop=stop)
    engine.module.count_routing(logs(counts))
    run_micro_batches(engine, batch, counts, meter, cfg=cfg, mesh=mesh, device=device)
    engine.module.count_routing(True)
    require_finite(engine, meter, batch, mesh)
    return counts, engine.step(lr).grad_norm
