"""`bench exchange`: the all-to-all of expert buffers at the configured sizes against a plain copy of the same bytes."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from conf.derived.groups import expert_capacity, group_tokens, micro_batch_size
from conf.derived.layers import stacks
from conf.schema import RunConfig
from measure.speed.result import Row
from measure.speed.setup import Settings
from measure.speed.step import clock_in_step
from measure.speed.timing import compare
from parallel.engine.protocol import compute_dtype
from parallel.mesh import collectives
from parallel.mesh.axes import Mesh


def run(settings: Settings, mesh: Mesh) -> Iterator[Row]:
    """A row for the buffers of each stack."""
    cfg = settings.cfg
    assert mesh.ep.size > 1, "no expert buffer leaves its rank"
    for stack, shape in buffer_shapes(cfg, mesh).items():
        sent = torch.randn(shape, device=settings.device).to(compute_dtype(cfg.train.precision))
        received = torch.empty_like(sent)
        comparison = compare(
            lambda sent=sent: collectives.all_to_all(sent, mesh.ep),
            lambda sent=sent, received=received: received.copy_(sent),
            clock=clock_in_step(mesh, settings.device),
            rounds=settings.rounds,
            repeats=10,
        )
        leaving = sent.nbytes * (mesh.ep.size - 1) / mesh.ep.size
        yield Row(
            benchmark="exchange",
            case=f"all-to-all, {stack} buffer {list(shape)}, {mesh.ep.size} ranks",
            peer="copy of the same bytes",
            comparison=comparison,
            numbers={"MiB": sent.nbytes / 2**20, "GiB/s out of a rank": leaving / 2**30 / comparison.ours_seconds},
        )


def buffer_shapes(cfg: RunConfig, mesh: Mesh) -> dict[str, tuple[int, ...]]:
    """[experts, groups, capacity, d_model] of one micro-batch on one rank, for each stack."""
    count = micro_batch_size(cfg) // (cfg.moe.group_sequences * (mesh.tp.size // mesh.etp.size))
    return {
        stack: (
            cfg.moe.num_experts,
            count,
            expert_capacity(cfg.moe, group_tokens(cfg, stack), train=True),
            cfg.model.d_model,
        )
        for stack in stacks(cfg.model, cfg.moe)
    }
