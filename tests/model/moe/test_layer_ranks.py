"""The expert layer on ranks equals one process: outputs, losses, counts and every gradient, in fp64."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from model.moe.types import RouterStats
from parallel.layers.experts import build_exchange
from parallel.layers.sharding import Shard, shard_of
from parallel.mesh.groups import init_groups
from tests.harness import run_ranks
from tests.model.moe.build import BATCH, Outcome, Variant, batch, build_layer, parallel_config, run_layer

VARIANTS = (
    Variant(),
    Variant(ffn="gated_gelu", jitter=0.2, expert_dropout=0.3),
    Variant(to_one_expert=True),  # overflow at one rank, zero tokens at the others
    Variant(empty_rows=4, capacity_factor=2.0),  # the first data-parallel rank or ranks have padding only
    Variant(group_sequences=2, expert_dropout=0.3),
    Variant(mode="eval"),
    *(Variant(router=router, jitter=0.2) for router in ("top_2", "switch_max", "expert_choice", "ntlb")),
    Variant(router="expert_choice", semantics="flaxformer", mode="no_drop"),
)

Place = tuple[int, int, dict[str, Shard]]  # dp rank, tp rank, where each local parameter lies


def layers_on_rank(rank: int, world: int, tp: int, ep: int, etp: int) -> list[tuple[Place, Outcome]]:
    mesh = init_groups(parallel_config(tp, ep, etp))
    exchange = build_exchange(mesh)
    share = BATCH // mesh.dp.size
    rows = slice(mesh.dp.rank * share, (mesh.dp.rank + 1) * share)
    results = []
    for v in VARIANTS:
        if share % (v.group_sequences * exchange.group_shards):
            continue
        layer = build_layer(v, exchange=exchange, mesh=mesh)
        places = {name: shard_of(p, mesh) for name, p in layer.named_parameters()}
        results.append(((mesh.dp.rank, mesh.tp.rank, places), run_layer(layer, v, rows)))
    return results


def no_drop_on_rank(rank: int, world: int) -> torch.Tensor:
    mesh = init_groups(parallel_config(2, 2, 1))
    layer = build_layer(Variant(group_sequences=4), exchange=build_exchange(mesh), mesh=mesh)
    x, real, _ = batch(Variant())
    with torch.no_grad():
        return layer(x[:3], real[:3], mode="no_drop", noise=None)[0]


def test_no_drop_takes_any_batch_although_tensor_ranks_share_the_sequences():
    x, real, _ = batch(Variant())
    want, _ = build_layer(Variant())(x[:3], real[:3], mode="no_drop", noise=None)
    for y in run_ranks(no_drop_on_rank, 2):
        close(y, want.detach(), "y")


def close(ours: torch.Tensor, want: torch.Tensor, what: str) -> None:
    torch.testing.assert_close(ours, want, rtol=1e-10, atol=1e-10, msg=lambda text: f"{what}: {text}")


@pytest.mark.parametrize(
    ("tp", "dp", "ep", "etp"),
    [(1, 2, 2, 1), (1, 4, 4, 1), (1, 4, 2, 1), (2, 1, 1, 2), (2, 2, 2, 2), (2, 1, 1, 1), (2, 1, 2, 1), (2, 2, 4, 1)],
)
def test_equals_one_process(tp, dp, ep, etp):
    per_rank = run_ranks(layers_on_rank, tp * dp, tp, ep, etp)
    assert len(per_rank[0]) == len(VARIANTS)
    for v, *ranks in zip(VARIANTS, *per_rank, strict=True):
        want = run_layer(build_layer(v), v, slice(0, BATCH))
        share = BATCH // dp
        summed = {name: torch.zeros_like(grad) for name, grad in want.grads.items()}
        aux, z, stats = 0.0, 0.0, {field.name: 0.0 for field in fields(RouterStats)}
        for (dp_rank, tp_rank, places), ours in ranks:
            rows = slice(dp_rank * share, (dp_rank + 1) * share)
            close(ours.y, want.y[rows], f"{v} y")
            close(ours.grad_x, want.grad_x[rows], f"{v} grad x")
            for name, grad in ours.grads.items():
                if name.startswith("experts.") or tp_rank == 0:  # the router's is whole on every tensor rank
                    summed[name][places[name].slices] += grad
            if tp_rank == 0:
                aux, z = aux + ours.routing.aux_loss, z + ours.routing.z_sum
                stats = {name: total + getattr(ours.routing.stats, name) for name, total in stats.items()}
        for name, grad in want.grads.items():
            close(summed[name], grad, f"{v} {name}")
        close(aux, want.routing.aux_loss, f"{v} aux")
        close(z, want.routing.z_sum, f"{v} z")
        for name, total in stats.items():
            torch.testing.assert_close(total, getattr(want.routing.stats, name), rtol=1e-5, atol=1e-5)
        check_tensor_ranks_agree(ranks)


def check_tensor_ranks_agree(ranks: list[tuple[Place, Outcome]]) -> None:
    """The router's gradient, the losses and the counts are equal on all tensor ranks: nothing sums over tp later."""
    first = {place[0]: ours for place, ours in ranks if place[1] == 0}
    for place, ours in ranks:
        close(ours.grads["router.weight"], first[place[0]].grads["router.weight"], "router over tp")
        close(ours.routing.aux_loss, first[place[0]].routing.aux_loss, "aux over tp")
        assert torch.equal(ours.routing.stats.kept_E, first[place[0]].routing.stats.kept_E)
