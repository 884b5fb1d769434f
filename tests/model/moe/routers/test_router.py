"""The router against the naive oracle, and what may carry gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.routing.settings import MoeRules, moe_rules
from conf.schema import SemanticsName
from tests.model.moe.oracle import naive_route
from tests.model.moe.routers.call import Given, route_tokens
from tests.model.t5.build import MOE


def rules_of(semantics: SemanticsName, **moe) -> MoeRules:
    return moe_rules(replace(MOE, **{"semantics": semantics, "defects": "reproduced", **moe}), "encoder")


def rounded(rules: MoeRules, **rounding) -> MoeRules:
    return replace(rules, rounding=replace(rules.rounding, **rounding))


MESH = rules_of("mesh_tf")


def problem(seed: int, groups: int, tokens: int, experts: int, *, pads: float = 0.2, ties: bool = False):
    """x [G, S, D], real [G, S], weight [D, E] in fp64; integers when ties are wanted."""
    random = torch.Generator().manual_seed(seed)
    shape, dim = (groups, tokens), 5
    if ties:
        x = torch.randint(-1, 2, (*shape, dim), generator=random).double()
        weight = torch.randint(-1, 2, (dim, experts), generator=random).double()
    else:
        x = torch.randn(*shape, dim, generator=random, dtype=torch.float64)
        weight = torch.randn(dim, experts, generator=random, dtype=torch.float64)
    real = torch.rand(shape, generator=random) >= pads
    return x, real, weight


def check_against_oracle(x, real, weight, capacity) -> None:
    ours = route_tokens(x, real, weight, rules=MESH, capacity=capacity)
    want = naive_route(x, real, weight, capacity)
    groups, tokens, _ = x.shape
    experts = weight.shape[1]
    slots = torch.full((groups, tokens), experts * capacity)
    gates = torch.zeros(groups, tokens, dtype=torch.float64)
    inverse = torch.full((groups, experts, capacity), tokens)
    load, kept = torch.zeros(experts), torch.zeros(experts)
    for (g, s), e in want.expert.items():
        load[e] += bool(real[g, s])
        if (g, s) in want.slot:
            c = want.slot[g, s]
            slots[g, s], gates[g, s], inverse[g, e, c] = e * capacity + c, want.gate[g, s], s
            kept[e] += 1
    assert torch.equal(ours.slots_GSK[..., 0], slots)
    assert torch.equal(ours.tokens_GEC, inverse)
    torch.testing.assert_close(ours.gates_GSK[..., 0], gates, rtol=1e-12, atol=0)
    assert float(ours.aux_loss) == pytest.approx(want.aux, rel=1e-12, abs=1e-12)
    assert float(ours.z_sum) == pytest.approx(want.z_sum, rel=1e-12, abs=1e-12)
    assert torch.equal(ours.stats.load_E, load)
    assert torch.equal(ours.stats.kept_E, kept)
    assert int(ours.stats.tokens) == int(real.sum())
    assert int(ours.stats.slots) == groups * experts * capacity
    assert int(ours.stats.groups) == groups
    assert float(ours.stats.entropy) == pytest.approx(want.entropy, rel=1e-5, abs=1e-5)
    assert float(ours.stats.confidence) == pytest.approx(want.confidence, rel=1e-5, abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    groups=st.integers(1, 3),
    tokens=st.integers(1, 12),
    experts=st.integers(1, 6),
    capacity=st.integers(0, 14),
    pads=st.sampled_from([0.0, 0.3, 1.0]),
    ties=st.booleans(),
)
def test_equals_naive_oracle(seed, groups, tokens, experts, capacity, pads, ties):
    check_against_oracle(*problem(seed, groups, tokens, experts, pads=pads, ties=ties), capacity)


def test_all_tokens_to_one_expert_overflow_in_token_order():
    x, _, weight = problem(0, 2, 10, 4)
    weight[:, 2] = 0
    x[..., 0], weight[0, :] = 5.0, torch.tensor([-9.0, -9.0, 9.0, -9.0])
    real = torch.ones(2, 10, dtype=torch.bool)
    real[0, 0] = False
    out = route_tokens(x, real, weight, rules=MESH, capacity=3)
    assert out.tokens_GEC[0, 2].tolist() == [1, 2, 3]
    assert out.tokens_GEC[1, 2].tolist() == [0, 1, 2]
    assert out.stats.load_E.tolist() == [0, 0, 19, 0]
    assert out.stats.kept_E.tolist() == [0, 0, 6, 0]


def test_ties_go_to_the_first_expert():
    out = route_tokens(
        torch.zeros(1, 4, 3), torch.ones(1, 4, dtype=torch.bool), torch.zeros(3, 5), rules=MESH, capacity=4
    )
    assert out.slots_GSK.flatten().tolist() == [0, 1, 2, 3]


def test_aux_loss_is_one_for_uniform_routing_and_scaled_by_the_share_of_real_tokens():
    x = torch.eye(4, dtype=torch.float64).repeat(2, 1).unsqueeze(0) * 1e-9
    weight = torch.eye(4, dtype=torch.float64)
    real = torch.ones(1, 8, dtype=torch.bool)
    assert float(route_tokens(x, real, weight, rules=MESH, capacity=2).aux_loss) == pytest.approx(1.0)
    real[0, 6:] = False
    assert float(route_tokens(x, real, weight, rules=MESH, capacity=2).aux_loss) == pytest.approx(0.75)


@pytest.mark.parametrize("part", ["gate", "aux", "z"])
def test_gradcheck(part):
    x, real, weight = problem(3, 2, 6, 4)

    def value(x, weight):
        out = route_tokens(x, real, weight, rules=MESH, capacity=2)
        return {"gate": out.gates_GSK, "aux": out.aux_loss, "z": out.z_sum}[part]

    assert torch.autograd.gradcheck(value, (x.requires_grad_(), weight.requires_grad_()))


def test_padding_contributes_nothing_to_gate_and_z_gradients():
    x, real, weight = problem(5, 2, 8, 4, pads=0.5)
    x.requires_grad_()
    out = route_tokens(x, real, weight, rules=MESH, capacity=8)
    (out.gates_GSK.sum() + out.z_sum).backward()
    assert torch.equal(x.grad[~real], torch.zeros_like(x.grad[~real]))
    assert bool((x.grad[real].abs().sum(-1) > 0).all())


def test_decisions_are_fp32_under_bf16_activations():
    x, real, weight = problem(7, 2, 40, 8)
    x_bf16, weight_fp32 = x.bfloat16(), weight.float()
    mended = rounded(MESH, kernel="fp32")
    low = route_tokens(x_bf16, real, weight_fp32, rules=mended, capacity=6)
    high = route_tokens(x_bf16.float(), real, weight_fp32, rules=MESH, capacity=6)
    assert torch.equal(low.slots_GSK, high.slots_GSK)
    assert torch.equal(low.logits_GSE, high.logits_GSE)
    for value in (low.logits_GSE, low.gates_GSK, low.aux_loss, low.z_sum, low.stats.aux, low.stats.entropy):
        assert value.dtype == torch.float32
    narrow = route_tokens(x_bf16, real, weight_fp32, rules=MESH, capacity=6)  # a reference in bf16 rounds its kernel
    same = route_tokens(x_bf16, real, weight_fp32.bfloat16().float(), rules=mended, capacity=6)
    assert torch.equal(narrow.logits_GSE, same.logits_GSE)
    assert not torch.equal(narrow.logits_GSE, low.logits_GSE)


def test_jitter_multiplies_the_routers_input():
    x, real, weight = problem(9, 2, 6, 4)
    uniform = torch.rand(2, 6, 5, dtype=torch.float64)
    rules = rules_of("mesh_tf", jitter=0.01)
    noisy = route_tokens(x, real, weight, rules=rules, capacity=6, noise=Given(router_jitter=uniform))
    by_hand = route_tokens(x * (0.99 + 0.02 * uniform), real, weight, rules=MESH, capacity=6)
    torch.testing.assert_close(noisy.logits_GSE, by_hand.logits_GSE, rtol=1e-14, atol=1e-14)
    assert not torch.equal(noisy.logits_GSE, route_tokens(x, real, weight, rules=MESH, capacity=6).logits_GSE)


def test_paper_listing_multiplies_in_the_activations_dtype_and_mended_does_not():
    x, real, weight = problem(7, 2, 40, 8)
    x, weight = x.bfloat16(), weight.float()
    low = route_tokens(x, real, weight, rules=rules_of("paper"), capacity=6).logits_GSE
    assert torch.equal(low, (x @ weight.bfloat16()).float())
    assert low.dtype == torch.float32
    high = route_tokens(x, real, weight, rules=rules_of("paper", defects="mended"), capacity=6).logits_GSE
    assert torch.equal(high, x.float() @ weight)


def test_paper_listing_leaves_slot_zero_empty_and_jitters_logits():
    paper = rules_of("paper", jitter=0.1)
    x, real, weight = torch.zeros(1, 5, 3), torch.ones(1, 5, dtype=torch.bool), torch.zeros(3, 4)
    out = route_tokens(x, real, weight, rules=paper, capacity=3)
    assert out.tokens_GEC[0, 0].tolist() == [5, 0, 1]
    uniform = torch.rand(1, 5, 4)
    noisy = route_tokens(x, real, weight, rules=paper, capacity=3, noise=Given(router_jitter=uniform))
    torch.testing.assert_close(noisy.logits_GSE, 0.9 + 0.2 * uniform)


def test_padding_is_a_token_for_flaxformer_and_hf():
    x, real, weight = problem(11, 1, 10, 3, pads=0.5)
    everything = torch.ones_like(real)
    for name in ("flaxformer", "hf"):
        padded = route_tokens(x, real, weight, rules=rules_of(name), capacity=4)
        whole = route_tokens(x, everything, weight, rules=rules_of(name), capacity=4)
        assert torch.equal(padded.slots_GSK, whole.slots_GSK)
        assert torch.equal(padded.aux_loss, whole.aux_loss)
        assert torch.equal(padded.z_sum, whole.z_sum)
        real_only = route_tokens(x, real, weight, rules=MESH, capacity=4)
        assert torch.equal(padded.stats.z, real_only.stats.z)  # what is logged is divided by real tokens
        assert not torch.equal(padded.stats.z, whole.stats.z)
        assert int(padded.stats.tokens) == int(real.sum())


def test_hf_decides_in_the_activation_dtype():
    weight = torch.tensor([[1.0, 1.0 + 1e-4]])  # the second expert wins in fp32; in bf16 the probabilities are equal
    x, real = torch.ones(1, 1, 1, dtype=torch.bfloat16), torch.ones(1, 1, dtype=torch.bool)
    assert route_tokens(x, real, weight, rules=rounded(MESH, kernel="fp32"), capacity=1).slots_GSK.item() == 1
    assert route_tokens(x, real, weight, rules=rules_of("hf"), capacity=1).slots_GSK.item() == 0
