"""Expert layers on ranks beside the same layers in one process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import torch

from model.moe.types import RouterStats
from parallel.layers.experts import build_exchange
from parallel.layers.sharding import Shard, shard_of
from parallel.mesh.groups import init_groups
from tests.harness import run_ranks
from tests.model.moe.build import BATCH, Outcome, Variant, build_layer, run_layer
from tests.settings import parallel_config

Place = tuple[int, int, dict[str, Shard]]  # dp rank, tp rank, where each local parameter lies
Variants = tuple[Variant, ...]
OnRank = Callable[..., list[tuple[Place, Outcome]]]  # of rank, world, variants, tp, ep, etp


def layers_on_rank(
    rank: int, world: int, variants: Variants, tp: int, ep: int, etp: int
) -> list[tuple[Place, Outcome]]:
    """What this rank's rows of the batch give."""
    mesh = init_groups(parallel_config(tp, ep, etp))
    exchange = build_exchange(mesh)
    share = BATCH // mesh.dp.size
    rows = slice(mesh.dp.rank * share, (mesh.dp.rank + 1) * share)
    results = []
    for v in variants:
        assert share % (v.group_sequences * exchange.group_shards) == 0, v
        layer = build_layer(v, exchange=exchange, mesh=mesh)
        places = {name: shard_of(p, mesh) for name, p in layer.named_parameters()}
        results.append(((mesh.dp.rank, mesh.tp.rank, places), run_layer(layer, v, rows)))
    return results


def close(ours: torch.Tensor, want: torch.Tensor, what: str) -> None:
    torch.testing.assert_close(ours, want, rtol=1e-10, atol=1e-10, msg=lambda text: f"{what}: {text}")


def assert_equals_one_process(
    variants: Variants, tp: int, dp: int, ep: int, etp: int, *, on_rank: OnRank = layers_on_rank
) -> None:
    """Outputs, losses, counts and every gradient, in fp64."""
    per_rank = run_ranks(on_rank, tp * dp, variants, tp, ep, etp)
    assert len(per_rank[0]) == len(variants)
    for v, *ranks in zip(variants, *per_rank, strict=True):
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
            if tp_rank == 0 and v.mode != "no_drop":
                stats = {name: total + getattr(ours.routing.stats, name) for name, total in stats.items()}
        for name, grad in want.grads.items():
            close(summed[name], grad, f"{v} {name}")
        close(aux, want.routing.aux_loss, f"{v} aux")
        close(z, want.routing.z_sum, f"{v} z")
        for name, total in stats.items() if v.mode != "no_drop" else ():
            torch.testing.assert_close(total, getattr(want.routing.stats, name), rtol=1e-5, atol=1e-5)
        _tensor_ranks_agree(ranks)


def _tensor_ranks_agree(ranks: list[tuple[Place, Outcome]]) -> None:
    """The router's gradients, the losses and the counts are equal on all tensor ranks: nothing sums over tp later."""
    first = {place[0]: ours for place, ours in ranks if place[1] == 0}
    for place, ours in ranks:
        for name, grad in ours.grads.items():
            if name.startswith("router."):
                close(grad, first[place[0]].grads[name], f"{name} over tp")
        close(ours.routing.aux_loss, first[place[0]].routing.aux_loss, "aux over tp")
        if (stats := ours.routing.stats) is not None:
            assert torch.equal(stats.kept_E, first[place[0]].routing.stats.kept_E)
