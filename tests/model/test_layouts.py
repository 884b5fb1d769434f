"""The five layouts of section 5 of the Switch Transformer paper train as one process does, in fp64 without an engine.

Dropout, attention dropout, expert dropout and jitter are on, tokens are dropped, padding is very uneven, blocks are
recomputed in backward.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.model.layouts import Layout, assert_equals_one_process
from tests.model.t5.build import MOE, run_config

EXPERTS = replace(
    MOE, group_sequences=2, capacity_factor=1.0, min_expert_capacity=1, jitter=0.1, expert_dropout=0.2,
    aux_loss_weight=0.1, z_loss_weight=1.0,
)  # fmt: skip

LAYOUTS = {
    "data": Layout(world=2),
    "model": Layout(world=2, tp=2),
    "model_whole_experts": Layout(world=2, tp=2, etp=1),
    "model_data": Layout(world=4, tp=2),
    "expert_data": Layout(world=2, ep=2),
    "expert_data_4": Layout(world=4, ep=2),
    "expert_model_data": Layout(world=4, tp=2, ep=2),
    "expert_model_data_whole_experts": Layout(world=4, tp=2, ep=2, etp=1),
    "expert_over_tensor_ranks": Layout(world=4, tp=2, ep=4, etp=1),
}


def switch(**changes: Any) -> Any:
    return run_config(**{"moe": "switch", "experts": EXPERTS, "dropout": 0.1, "attention_dropout": 0.1, **changes})


QUICK = ("model_whole_experts", "expert_data", "expert_model_data", "expert_over_tensor_ranks")


@pytest.mark.parametrize(
    "layout",
    [pytest.param(each, id=name, marks=() if name in QUICK else pytest.mark.slow) for name, each in LAYOUTS.items()],
)
def test_layout_equals_one_process(layout: Layout) -> None:
    one_process = assert_equals_one_process(layout, switch())
    assert one_process.dropped > 0


def test_gated_untied_every_layer_sparse_with_accumulation() -> None:
    experts = replace(EXPERTS, group_sequences=1, sparse_every=1, decoder_sparse_every=1)
    cfg = switch(ffn="gated_gelu", tie_embeddings=False, experts=experts)
    assert_equals_one_process(Layout(world=4, tp=2, ep=2, etp=1, accumulation=2), cfg)


def test_an_embedding_for_each_stack() -> None:
    assert_equals_one_process(Layout(world=4, tp=2, ep=2), switch(tie_embeddings=False, share_embeddings=False))
