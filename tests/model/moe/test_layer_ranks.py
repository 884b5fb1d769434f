"""The expert layer on ranks equals one process: outputs, losses, counts and every gradient, in fp64."""

from __future__ import annotations

import pytest
import torch

from parallel.layers.experts import build_exchange
from parallel.mesh.groups import init_groups
from tests.harness import run_ranks
from tests.model.moe.build import Variant, batch, build_layer
from tests.model.moe.ranks import assert_equals_one_process, close
from tests.settings import parallel_config

VARIANTS = (
    Variant(),
    Variant(ffn="gated_gelu", jitter=0.2, expert_dropout=0.3),
    Variant(to_one_expert=True),  # overflow at one rank, zero tokens at the others
    Variant(empty_rows=4, capacity_factor=2.0),  # the first data-parallel rank or ranks have padding only
    Variant(group_sequences=2, expert_dropout=0.3),
    Variant(mode="eval"),
    *(Variant(router=router, jitter=0.2) for router in ("top_2", "switch_max", "expert_choice", "ntlb")),
    Variant(router="expert_choice", semantics="flaxformer", mode="no_drop"),
    Variant(capacity="dropless", ffn="gated_gelu", jitter=0.2, expert_dropout=0.3),
    Variant(capacity="dropless", to_one_expert=True),  # all rows at one rank, none at the others
    Variant(capacity="dropless", empty_rows=4, group_sequences=2, expert_dropout=0.3),
    Variant(capacity="dropless", router="top_2", mode="eval"),
    *(Variant(capacity="dropless", router=router, jitter=0.2) for router in ("top_2", "switch_max", "ntlb")),
    Variant(mode="no_drop", router="top_2"),
)


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


@pytest.mark.parametrize(
    ("tp", "dp", "ep", "etp"),
    [
        (1, 2, 2, 1),
        (2, 1, 1, 2),
        (2, 1, 1, 1),
        (2, 2, 4, 1),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in ((1, 4, 4, 1), (1, 4, 2, 1), (2, 2, 2, 2), (2, 1, 2, 1))
        ),
    ],
)
def test_equals_one_process(tp, dp, ep, etp):
    assert_equals_one_process(VARIANTS, tp, dp, ep, etp)
