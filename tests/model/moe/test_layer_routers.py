"""The expert layer with every router: modes, what a result may depend on, and the rules that follow the stack."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch

from conf.routing.references import SEMANTICS
from conf.routing.routers import ROUTERS
from conf.routing.settings import moe_rules
from conf.schema import SemanticsName
from model.moe.experts import ExpertBank
from model.moe.layer import MoeLayer, _evaluation_slots
from model.moe.types import LayerRouting, Routing
from tests.model.moe.build import (
    BATCH,
    LENGTH,
    Variant,
    batch,
    build_layer,
    layer_noise,
    layer_of,
    model_config,
    moe_config,
)

PAIRS = [(name, router) for router, row in ROUTERS.items() for name in row.under]
NOISE = layer_noise(torch.arange(BATCH))


def variant(semantics: SemanticsName, router: str, **more) -> Variant:
    return Variant(semantics=semantics, router=router, **more)


@pytest.mark.parametrize(("semantics", "router"), PAIRS)
def test_evaluation_is_deterministic_and_a_group_does_not_see_the_others(semantics, router):
    layer = build_layer(variant(semantics, router, jitter=0.3, group_sequences=2))
    x, real, _ = batch(Variant())
    with torch.no_grad():
        y, _ = layer(x, real, mode="eval", noise=NOISE)
        assert torch.equal(y, layer(x, real, mode="eval", noise=None)[0])
        pairs = [layer(x[i : i + 2], real[i : i + 2], mode="eval", noise=None)[0] for i in range(0, BATCH, 2)]
    torch.testing.assert_close(y, torch.cat(pairs), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("semantics", "router"), PAIRS)
def test_jitter_moves_logits_in_training_unless_the_reference_reads_its_input_as_it_is(semantics, router):
    """Mesh-TensorFlow's `_top_2_gating` has no jitter; its other gating functions and the other references have."""
    x, real, _ = batch(Variant())
    layer = build_layer(variant(semantics, router, jitter=0.3, capacity_factor=4.0))
    with torch.no_grad():
        y, _ = layer(x, real, mode="train", noise=NOISE)
        still, _ = layer(x, real, mode="train", noise=None)
    assert torch.equal(y, still) is ((semantics, router) == ("mesh_tf", "top_2"))


def test_sequences_of_one_group_share_its_capacity():
    """Where evaluation does depend on the batch: with one sequence to a group it cannot."""
    x, real, _ = batch(Variant())
    for sequences, same in ((2, False), (1, True)):
        layer = build_layer(Variant(to_one_expert=True, group_sequences=sequences, mode="eval"))
        with torch.no_grad():
            y, _ = layer(x, torch.ones_like(real), mode="eval", noise=None)
            other = torch.ones_like(real)
            other[0] = False  # the neighbour becomes padding
            z, _ = layer(x, other, mode="eval", noise=None)
        assert torch.equal(y[1], z[1]) is same


@pytest.mark.parametrize(
    ("semantics", "skipped"), [("mesh_tf", True), ("flaxformer", False), ("hf", False), ("paper", False)]
)
def test_padding_in_front_of_a_token_takes_its_slot_where_the_semantics_routes_padding(semantics, skipped):
    """Where evaluation does depend on a sequence's own padding, at the same padded length."""
    layer = build_layer(Variant(semantics=semantics, to_one_expert=True, mode="eval"))
    x, real, _ = batch(Variant())
    assert layer.rules.capacity.slots(LENGTH, train=False) < LENGTH
    padded = torch.ones_like(real)
    padded[:, : LENGTH - 1] = False
    with torch.no_grad():
        y, _ = layer(x, padded, mode="eval", noise=None)
    assert bool(y[:, -1].any()) is skipped


TOKENS_CHOOSE = [pair for pair in PAIRS if not ROUTERS[pair[1]].experts_choose]


@pytest.mark.parametrize("mode", ["train", "eval", "no_drop"])
@pytest.mark.parametrize(("semantics", "router"), TOKENS_CHOOSE)
def test_rows_without_bound_equal_buffers_with_a_slot_for_every_token(monkeypatch, semantics, router, mode):
    """Outputs, losses and all gradients, in training with jitter; as many rows as choices, however many experts."""
    layer = build_layer(variant(semantics, router, capacity="dropless", group_sequences=2, jitter=0.2))
    x, real, cotangent = batch(Variant())
    x = x.clone().requires_grad_()

    def run() -> tuple[list[torch.Tensor], LayerRouting]:
        y, routing = layer(x, real, mode=mode, noise=NOISE if mode == "train" else None)
        loss = (y * cotangent).sum() + 0.3 * routing.aux_loss + 0.1 * routing.z_sum
        return [y, loss, *torch.autograd.grad(loss, (x, *layer.parameters()))], routing

    rows: list[int] = []
    work_on = ExpertBank.sorted

    def watched(bank: ExpertBank, rows_RD: torch.Tensor, counts_X: torch.Tensor, **how) -> torch.Tensor:
        rows.append(int(counts_X.sum()))
        return work_on(bank, rows_RD, counts_X, **how)

    monkeypatch.setattr(ExpertBank, "sorted", watched)
    ours, routing = run()
    assert len(rows) == 1
    assert int(real.sum()) <= rows[0] <= real.numel() * layer.rules.choices
    monkeypatch.setattr(layer, "_through_rows", functools.partial(through_buffers, layer))
    for value, want in zip(ours, run()[0], strict=True):
        torch.testing.assert_close(value, want, rtol=1e-12, atol=1e-12)
    if mode == "no_drop":
        assert routing.stats is None
        return
    assert int(routing.stats.routed) == int(real.sum())
    assert int(routing.stats.kept_E.sum()) <= int(routing.stats.slots) == rows[0]


def through_buffers(layer: MoeLayer, x_GSD, gates_GSK, routing, noise, *, length) -> torch.Tensor:
    return layer._through_buffers(x_GSD, gates_GSK, routing, noise, x_GSD.shape[1] // length)


@pytest.mark.parametrize("semantics", SEMANTICS)
def test_dropless_is_a_capacity_that_no_expert_reaches(semantics):
    x, real, _ = batch(Variant())
    bounded = build_layer(variant(semantics, "switch", capacity_factor=8.0))
    if semantics.startswith("hf"):
        bounded.rules = replace(bounded.rules, capacity=replace(bounded.rules.capacity, minimum=LENGTH))
    dropless = build_layer(variant(semantics, "switch", capacity="dropless"))
    (y, routing), (want, bound) = (layer(x, real, mode="train", noise=NOISE) for layer in (dropless, bounded))
    torch.testing.assert_close(y, want, rtol=1e-12, atol=1e-12)
    assert torch.equal(routing.aux_loss, bound.aux_loss)


def test_dropout_of_rows_is_that_of_each_choice_whatever_else_is_routed():
    layer = build_layer(Variant(capacity="dropless", router="top_2", expert_dropout=0.5))
    x, real, _ = batch(Variant())
    whole, _ = layer(x, real, mode="train", noise=NOISE)
    last = layer_noise(torch.arange(BATCH)[-2:])
    torch.testing.assert_close(layer(x[-2:], real[-2:], mode="train", noise=last)[0], whole[-2:], rtol=1e-12, atol=0)
    still, _ = layer(x, real, mode="train", noise=None)
    other, _ = layer(x, real, mode="train", noise=layer_noise(torch.arange(BATCH), step=8))
    assert not torch.allclose(whole, still)
    assert not torch.allclose(whole, other)


def test_no_drop_without_any_token_gives_zeros():
    x = torch.zeros(2, LENGTH, 6, dtype=torch.float64)
    y, _ = build_layer(Variant())(x, torch.zeros(2, LENGTH, dtype=torch.bool), mode="no_drop", noise=None)
    assert torch.equal(y, x)


@pytest.mark.parametrize(("semantics", "router"), PAIRS)
def test_no_drop_depends_on_neither_neighbours_nor_padding(semantics, router):
    layer = build_layer(variant(semantics, router, group_sequences=4, jitter=0.1))
    x, real, _ = batch(Variant())
    real = torch.arange(LENGTH) < torch.tensor([2, 3, 4, 5, 5, 1, 2, 3]).unsqueeze(1)
    with torch.no_grad():
        whole, _ = layer(x, real, mode="no_drop", noise=NOISE)
        for i in range(BATCH):
            n = int(real[i].sum())
            alone, _ = layer(x[i : i + 1, :n], real[i : i + 1, :n], mode="no_drop", noise=None)
            torch.testing.assert_close(whole[i, :n], alone[0], rtol=1e-12, atol=1e-12)
    if router != "expert_choice":
        assert bool(whole[real].any(-1).all())


@pytest.mark.parametrize("semantics", SEMANTICS)
def test_evaluation_slots_are_the_capacity_of_each_number_of_tokens(semantics):
    for factor in (0.5, 1.0, 1.25):
        moe = moe_config(Variant(semantics=semantics, experts=8), min_expert_capacity=2)
        rule = moe_rules(replace(moe, eval_capacity_factor=factor), "encoder").capacity
        slots = _evaluation_slots(rule, 199, torch.device("cpu"))
        assert slots.tolist() == [rule.slots(tokens, train=False) for tokens in range(200)]


class Decided(list[Routing]):
    """A tap that keeps what was decided."""

    def logits(self, logits_GSE: torch.Tensor) -> torch.Tensor:
        return logits_GSE

    def decided(self, routing: Routing) -> None:
        self.append(routing)


def test_jitter_that_leaks_is_the_one_the_router_sees():
    layer = build_layer(variant("hf", "switch", defects="reproduced", jitter=0.9, experts=1))
    layer.rules = replace(layer.rules, capacity=replace(layer.rules.capacity, minimum=LENGTH))
    layer.tap = seen = Decided()
    rows: list[torch.Tensor] = []
    layer.experts.register_forward_pre_hook(lambda _, given: rows.append(given[0].detach()))
    x, _, _ = batch(Variant())
    layer(x, torch.ones(x.shape[:2], dtype=torch.bool), mode="train", noise=NOISE)
    tokens = rows[0].view(BATCH, LENGTH, -1)  # one expert: slots are tokens
    assert not torch.allclose(tokens, x)
    torch.testing.assert_close(tokens @ layer.router.weight.detach(), seen[0].logits_GSE.detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("defects", ["mended", "reproduced"])
def test_gates_of_bf16_layers_are_rounded_where_the_reference_rounds_them(defects):
    layer = build_layer(variant("mesh_tf", "switch", defects=defects, experts=2, capacity_factor=2.0))
    layer.experts.wi.data = torch.eye(6, 8).expand(2, 6, 8).clone()
    layer.experts.wo.data = torch.eye(8, 6).expand(2, 8, 6).clone()
    layer.experts.bfloat16()
    weight = layer.router.weight.data = torch.tensor([0.0, 0.1]).expand(6, 2).clone()
    x = torch.rand(BATCH, LENGTH, 6, generator=torch.Generator().manual_seed(0)).bfloat16()  # relu changes nothing
    with torch.no_grad():
        y, _ = layer(x, torch.ones(BATCH, LENGTH, dtype=torch.bool), mode="train", noise=None)
    if defects == "reproduced":
        weight = weight.bfloat16().float()
    gate = (x.float() @ weight).softmax(-1)[..., 1:]
    rounded, whole = x * gate.bfloat16(), (x.float() * gate).bfloat16()
    assert not torch.equal(rounded, whole)
    torch.testing.assert_close(y, rounded if defects == "reproduced" else whole, rtol=0, atol=0)


@pytest.mark.parametrize("ffn", ["gelu", "gated_gelu"])
def test_experts_have_the_tanh_form_of_gelu(ffn):
    layer = build_layer(Variant(ffn=ffn))
    x = torch.linspace(-3, 3, 4 * 2 * 6, dtype=torch.float64).view(4, 2, 6)
    bank = layer.experts
    inner = x @ (bank.wi_0 if ffn == "gated_gelu" else bank.wi)
    gelu = 0.5 * inner * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (inner + 0.044715 * inner**3)))
    want = (gelu * (x @ bank.wi_1) if ffn == "gated_gelu" else gelu) @ bank.wo
    torch.testing.assert_close(bank(x, capacity=2, noise=None), want, rtol=1e-12, atol=1e-12)


def test_a_decoder_does_not_look_ahead_unless_told():
    for router in ("expert_choice", "switch_max"):
        moe = moe_config(Variant(router=router))
        layer = layer_of(model_config(), moe, stack="decoder")
        assert layer.rules.router == "switch"
        assert moe_rules(moe, "encoder").router == router
    assert moe_rules(replace(moe, decoder_router="switch_max"), "decoder").router == "switch_max"
    assert moe_rules(moe_config(Variant(router="top_2")), "decoder").router == "top_2"


def test_expert_gradients_are_scaled_only_where_the_semantics_scales_them():
    x, real, cotangent = batch(Variant())
    grads = {}
    for defects in ("mended", "reproduced"):
        layer = build_layer(Variant(semantics="flaxformer", defects=defects))
        (layer(x, real, mode="train", noise=None)[0] * cotangent).sum().backward()
        grads[defects] = (layer.experts.wi.grad, layer.experts.wo.grad, layer.router.weight.grad)
    for ours, scaled, factor in zip(grads["mended"], grads["reproduced"], (4, 4, 1), strict=True):
        torch.testing.assert_close(scaled, ours * factor, rtol=1e-12, atol=1e-14)


def test_random_second_choices_follow_their_probability_in_training_only():
    layer = build_layer(Variant(router="top_2", capacity_factor=8.0))
    options = replace(layer.rules.options, policy="random", threshold=0.5)
    layer.rules = replace(layer.rules, options=options)
    x, real, _ = batch(Variant())
    _, everything = layer(x, real, mode="eval", noise=None)
    kept, steps = 0.0, 200
    for step in range(steps):
        _, routing = layer(x, real, mode="train", noise=layer_noise(NOISE.rows_B, step=step))
        kept += float(routing.stats.load_E.sum() - routing.stats.tokens)
    p = (x @ layer.router.weight.detach()).softmax(-1).topk(2, -1).values
    second = (p[..., 1] / p.sum(-1))[real]
    assert int(everything.stats.load_E.sum()) == 2 * int(real.sum())
    assert kept / steps == pytest.approx(float((second / 0.5).clamp(max=1).sum()), rel=0.05)
