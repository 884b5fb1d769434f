"""Hugging Face's joined auxiliary loss and leaking jitter at every layout, and against a naive oracle."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from model.losses import LossScale, micro_batch_loss
from model.moe.balance import joined_loss
from model.moe.types import LayerBalance
from tests.model.layouts import Layout, assert_equals_one_process
from tests.model.moe.build import layer_of
from tests.model.t5.build import MOE, make_batch, make_model, run_config

HF = replace(
    MOE, semantics="hf", defects="reproduced", num_experts=4, min_expert_capacity=2, group_sequences=1, jitter=0.1
)
LAYOUTS = [
    Layout(world=2, tp=2, ep=1, accumulation=2),
    Layout(world=2, tp=2, ep=1, etp=1),
    Layout(world=2, tp=1, ep=2),
    Layout(world=4, tp=1, ep=4),
    Layout(world=4, tp=2, ep=2, etp=1),
]


@pytest.mark.parametrize(
    ("semantics", "layout"),
    [("hf_4", LAYOUTS[-1]), *(pytest.param("hf", layout, marks=pytest.mark.slow) for layout in LAYOUTS)],
    ids=str,
)
def test_losses_and_gradients_do_not_depend_on_the_layout(semantics: str, layout: Layout) -> None:
    cfg = run_config(moe="switch", num_encoder_layers=4, num_decoder_layers=3, experts=replace(HF, semantics=semantics))
    report = assert_equals_one_process(layout, cfg)
    assert report.dropped > 0
    assert report.losses[1] > 0


def test_layers_that_collapse_to_different_experts_cancel() -> None:
    """Two layers, each collapsed to its own expert of two, give 1 where one layer gives 2."""
    first = torch.tensor([[1.0, 0.0]])
    layers = [LayerBalance(f_GE=share, p_GE=share) for share in (first, 1 - first)]
    assert joined_loss(layers[:1]).item() == 2.0
    assert joined_loss(layers).item() == 1.0


@pytest.mark.parametrize("semantics", ["hf", "hf_4"])
def test_the_joined_loss_against_a_loop_over_tokens(semantics: str) -> None:
    experts = replace(
        HF, semantics=semantics, jitter=0.0, min_expert_capacity=1, aux_loss_weight=1.0, z_loss_weight=0.0
    )
    module = make_model(moe="switch", num_encoder_layers=4, experts=experts)
    seen: list[object] = []

    class Watch:
        def logits(self, logits):
            return logits

        def decided(self, routing):
            seen.append(routing)

    for block in module.encoder.layers:
        if block.is_sparse:
            block.ff.tap = Watch()
    batch = make_batch()
    output = module(batch.encoder_BL, batch.targets_BT, mode="train", noise=None)
    output = replace(output, routing={"encoder": output.routing["encoder"]})
    ours = micro_batch_loss(output, LossScale(target_tokens=1, router_tokens={"encoder": 1}, replicas=1), experts).aux
    total, groups, length = 0.0, *batch.encoder_BL.shape
    for g in range(groups):
        f, p = torch.zeros(4), torch.zeros(4)
        for routing in seen:  # layers joined along the tokens
            taken = [0] * 4
            for probabilities in routing.logits_GSE[g].detach().softmax(-1):
                choice = int(probabilities.argmax())
                taken[choice] += 1
                dropped = semantics == "hf_4" and taken[choice] > 1
                f[0 if dropped else choice] += 1 / (length * len(seen))
                p += probabilities / (length * len(seen))
        total += 4 * float((f * p).sum()) / groups
    assert len(seen) == 2
    assert ours.item() == pytest.approx(total, rel=1e-6)


def test_a_stack_with_experts_in_every_layer_has_no_router_losses() -> None:
    batch = make_batch()
    scale = LossScale(target_tokens=20, router_tokens={"encoder": 20, "decoder": 20}, replicas=1)
    for defects, silent in (("reproduced", True), ("mended", False)):
        experts = replace(HF, sparse_every=1, decoder_sparse_every=1, defects=defects)
        module = make_model(moe="switch", experts=experts)
        output = module(batch.encoder_BL, batch.targets_BT, mode="train", noise=None)
        parts = micro_batch_loss(output, scale, experts)
        assert (parts.aux.item() == 0, parts.z.item() == 0) == (silent, silent)


def test_jitter_reaches_the_experts_in_fp32_unless_mended() -> None:
    """With all tokens at one expert of identity weights the layer's output shows what the expert was given."""
    from tests.model.moe.build import layer_noise
    from tests.model.t5.build import MODEL

    x_BLD = torch.rand(2, 3, 16) + 0.5
    noise = layer_noise(torch.arange(2))

    def given(defects: str, dtype: torch.dtype) -> bool:
        experts = replace(HF, num_experts=1, min_expert_capacity=8, defects=defects)
        layer = layer_of(replace(MODEL, d_ff=16), experts)
        for weight in (layer.experts.wi, layer.experts.wo):
            weight.data = torch.eye(16)[None]
        layer.router.weight.data.zero_()
        layer.experts.to(dtype)
        x = x_BLD.to(dtype)
        y, _ = layer(x, torch.ones(2, 3, dtype=torch.bool), mode="train", noise=noise)
        return not torch.equal(y, x)

    assert given("reproduced", torch.float32)
    assert not given("reproduced", torch.bfloat16)
    assert not given("mended", torch.float32)
