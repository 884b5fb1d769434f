"""One step of a model on some layout, without an engine, and its comparison with one process.

The reducer here is the few lines that an engine must come down to: gradients are averaged over accumulation, then
summed over the ranks that hold copies (dp, experts: edp) and divided by dp.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from model.build import build_model
from model.losses import LossScale, micro_batch_loss
from parallel.layers.sharding import replica_axis, shard_of, tagged_parameters
from parallel.mesh.axes import Mesh, single_process
from parallel.mesh.collectives import all_reduce
from parallel.mesh.groups import init_groups
from parallel.rng import NoiseKey
from tests.harness import run_ranks
from tests.model.t5.build import make_batch
from tests.settings import parallel_config

ROWS = 8
Gradients = dict[str, tuple[tuple[int, ...], tuple[slice, ...], Tensor]]  # name -> global shape, my slices, my shard


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the ranks are arranged."""

    world: int
    tp: int = 1
    ep: int = 1
    etp: int | None = None
    accumulation: int = 1


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What one rank saw of a step."""

    losses: tuple[float, float, float]  # ce, aux, z of the whole step
    dropped: float  # real tokens of this rank that no expert took
    gradients: Gradients


def one_step(mesh: Mesh, cfg: Any, accumulation: int, *, compiled: bool = False) -> StepReport:
    """Forward and backward of the global batch of `ROWS` rows with this rank's rows, losses and gradients reduced."""
    module = build_model(cfg, mesh, device="cpu", dtype=torch.float64)
    if compiled:
        module.compile_steps(partial(torch.compile, backend="eager", dynamic=False), whole=False)
    batch = make_batch(rows=ROWS)
    dp = mesh.dp
    micro = ROWS // (dp.size * accumulation)
    decoder_tokens = (batch.targets_BT != 0).sum()
    scale = LossScale(
        target_tokens=decoder_tokens,
        router_tokens={"encoder": (batch.encoder_BL != 0).sum(), "decoder": decoder_tokens},
        replicas=dp.size * accumulation,
    )
    losses, dropped = torch.zeros(3, dtype=torch.float64), 0.0
    for a in range(accumulation):
        start = (dp.rank * accumulation + a) * micro
        mine = batch[start : start + micro]
        noise = NoiseKey(seed=4, step=9, rows_B=torch.arange(start, start + micro))
        output = module(mine.encoder_BL, mine.targets_BT, mode="train", noise=noise)
        parts = micro_batch_loss(output, scale, cfg.moe)
        (parts.total / accumulation).backward()
        losses += torch.stack([parts.ce, parts.aux, parts.z]).double()
        for layer in output.layers:
            dropped += (layer.stats.tokens - layer.stats.kept_E.sum()).item()
    all_reduce(losses, dp)
    gradients: Gradients = {}
    for name, parameter, _ in tagged_parameters(module):
        assert parameter.grad is not None, name
        grad, shard = parameter.grad.clone(), shard_of(parameter, mesh)
        all_reduce(grad, replica_axis(parameter, mesh))
        gradients[name] = (shard.global_shape, shard.slices, grad / dp.size)
    ce, aux, z = losses.tolist()
    return StepReport(losses=(ce, aux, z), dropped=dropped, gradients=gradients)


def _rank_step(rank: int, world: int, layout: Layout, cfg: Any, compiled: bool) -> StepReport:
    parallel = parallel_config(layout.tp, layout.ep, layout.etp)
    return one_step(init_groups(parallel), cfg, layout.accumulation, compiled=compiled)


def assert_equals_one_process(
    layout: Layout, cfg: Any, tolerance: float = 1e-10, *, compiled: bool = False
) -> StepReport:
    """Run `layout` and one process, and compare losses and every gradient, as shares of the tensor's maximum."""
    expected = one_step(single_process(), cfg, accumulation=1)
    for rank, report in enumerate(run_ranks(_rank_step, layout.world, layout, cfg, compiled)):
        for what, got, want in zip(("ce", "aux", "z"), report.losses, expected.losses, strict=True):
            assert abs(got - want) <= tolerance * abs(want), f"{what} on rank {rank}: {got} instead of {want}"
        assert report.gradients.keys() == expected.gradients.keys()
        for name, (shape, slices, grad) in report.gradients.items():
            whole = expected.gradients[name][2]
            assert shape == tuple(whole.shape), name
            error = (grad - whole[slices]).abs().max() / whole.abs().max()
            assert error <= tolerance, f"{name} on rank {rank}: relative error {error:.2e}"
    return expected
