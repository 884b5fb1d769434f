"""Closed forms of parameters and operations equal the module built on the meta device."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from conf.derived.estimate import forward_flops, num_active_params, num_params
from conf.reading.presets import presets
from conf.schema import RunConfig
from model.t5.model import SwitchTransformer
from parallel.layers.experts import LocalExchange
from parallel.layers.plain import PlainLayers
from parallel.layers.sharding import tagged_parameters
from tests.conf.composed import composed


def built(cfg: RunConfig) -> SwitchTransformer:
    with torch.device("meta"):
        return SwitchTransformer(cfg.model, cfg.moe, layers=PlainLayers(), exchange=LocalExchange())


TWINS = ["small", "switch_base_8", "switch_large_128", "switch_c_2048"]


@pytest.mark.parametrize(
    "overrides",
    [[f"model={preset}"] for preset in presets("model")] + [[f"model={p}", "moe=dense"] for p in TWINS],
    ids=" ".join,
)
def test_every_preset_has_the_parameters_of_its_module(overrides):
    cfg = composed(*overrides)
    module = built(cfg)
    assert sum(parameter.numel() for parameter in module.parameters()) == num_params(cfg.model, cfg.moe)


@pytest.mark.parametrize(
    "overrides",
    [
        ["moe.sparse_every=1"],
        ["model.num_encoder_layers=5", "model.num_decoder_layers=3", "moe.sparse_every=3"],
        ["model.tie_embeddings=false", "model.ffn=gated_gelu", "model.relative_buckets=16"],
        ["model.tie_embeddings=false", "model.share_embeddings=false", "model.vocab_size=8500"],
    ],
)
def test_odd_shapes_too_and_active_parameters_leave_out_all_experts_but_one(overrides):
    cfg = composed(*overrides)
    total, idle = 0, 0
    for _, parameter, spec in tagged_parameters(built(cfg)):
        total += parameter.numel()
        if spec.is_expert:
            idle += parameter.numel() // cfg.moe.num_experts * (cfg.moe.num_experts - 1)
    assert num_params(cfg.model, cfg.moe) == total
    assert num_active_params(cfg.model, cfg.moe) == total - idle


@pytest.mark.parametrize("overrides", [[], ["model.ffn=gated_gelu", "model.tie_embeddings=false"]])
def test_forward_flops_are_those_that_torch_counts(overrides):
    cfg = composed("moe=dense", *overrides)
    module = built(cfg)
    tokens = torch.ones(3, 20, dtype=torch.int64, device="meta")
    targets = torch.ones(3, 7, dtype=torch.int64, device="meta")
    with FlopCounterMode(display=False) as counter:
        module(tokens, targets, mode="eval", noise=None)
    expected = forward_flops(cfg.model, cfg.moe, encoder_length=20, decoder_length=7).total
    assert counter.get_total_flops() == 3 * expected
