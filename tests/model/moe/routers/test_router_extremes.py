"""Routing at the edges of the reference's arithmetic: groups of padding, more choices than experts, far logits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from conf.routing.settings import moe_rules
from tests.model.moe.routers.call import route_tokens
from tests.model.t5.build import MOE

REPRODUCED = replace(MOE, semantics="mesh_tf", defects="reproduced")


@pytest.mark.parametrize("importance", [False, True])
def test_experts_that_choose_in_a_group_of_padding_give_every_token_the_whole_weight(importance):
    # At -1e9 fp32 holds no log of the number of tokens: each of the 6 has p = 1, shared by the 2 experts that take it.
    rules = moe_rules(replace(REPRODUCED, router="expert_choice", num_experts=2), "encoder")
    random = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 6, 3, generator=random), torch.randn(3, 2, generator=random, requires_grad=True)
    real = torch.tensor([[False] * 6, [True] * 6])
    mask = real.float() if importance else None
    out = route_tokens(x, real, weight, rules=rules, capacity=4, importance_GS=mask)
    assert out.tokens_GEC[0].tolist() == [[0, 1, 2, 3]] * 2
    assert torch.equal(out.gates_GSK[0], torch.tensor([[0.5, 0.5]] * 4 + [[0.0, 0.0]] * 2))
    assert float(out.gates_GSK[1].detach().max()) < 0.9
    factor = torch.randn(6, 2, generator=random)
    (grad,) = torch.autograd.grad((out.gates_GSK[0] * factor).sum(), weight)
    given = factor / 2 * (torch.arange(6) < 4).unsqueeze(1)  # d/dp
    want = x[0].T @ (given - given.mean(0))  # p is 1, but the gradient of the logsumexp is a mean
    torch.testing.assert_close(grad, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("experts", "turns"), [(1, [0, 0, 0, 0]), (2, [1, 0, 0, 1]), (3, [1, 2, 0, 0])])
def test_a_token_with_more_choices_than_experts_starts_again_in_the_experts_own_order(experts, turns):
    rules = moe_rules(replace(REPRODUCED, router="ntlb", num_experts=experts, top_k=4), "encoder")
    logits = torch.tensor([0.0, 2.0, 1.0])[:experts]
    out = route_tokens(torch.ones(1, 1, 1), torch.ones(1, 1, dtype=torch.bool), logits[None], rules=rules, capacity=0)
    assert out.choices_GSQ.flatten().tolist() == turns


def test_the_gradient_of_p_adds_up_to_zero_far_from_zero():
    # torch.logsumexp differentiates to exp(l - logsumexp), whose exponent has an error of 1e-5 at 200.
    rules = moe_rules(replace(REPRODUCED, router="switch", num_experts=5), "encoder")
    far = 200 + torch.linspace(0.013, 0.7, 40).view(8, 5).requires_grad_()
    x, real = torch.eye(8)[None], torch.ones(1, 8, dtype=torch.bool)
    (grad,) = torch.autograd.grad(route_tokens(x, real, far, rules=rules, capacity=8).gates_GSK.sum(), far)
    assert float(grad.abs().max()) > 0.1
    assert float(grad.sum(1).abs().max()) < 2e-7


def test_a_second_gate_equal_to_the_threshold_is_not_sent():
    for threshold, sent in ((0.5, 1), (0.499, 2)):
        moe = replace(REPRODUCED, router="top_2", num_experts=4, second_policy="threshold", second_threshold=threshold)
        x, real = torch.zeros(1, 1, 1), torch.ones(1, 1, dtype=torch.bool)
        out = route_tokens(x, real, torch.zeros(1, 4), rules=moe_rules(moe, "encoder"), capacity=1)
        assert int((out.slots_GSK < 4).sum()) == sent


def test_the_place_in_the_queue_is_known_beyond_the_capacity_and_minus_one_where_a_token_does_not_queue():
    rules = moe_rules(replace(REPRODUCED, router="switch", num_experts=2), "encoder")
    real = torch.tensor([[True, False, True, True]])
    out = route_tokens(torch.zeros(1, 4, 1), real, torch.zeros(1, 2), rules=rules, capacity=1)
    assert out.places_GSQ.flatten().tolist() == [0, -1, 1, 2]
    assert out.slots_GSK.flatten().tolist() == [0, 2, 2, 2]


def test_the_load_of_a_router_with_further_tries_is_what_tokens_asked_first():
    rules = moe_rules(replace(REPRODUCED, router="ntlb", num_experts=3, top_k=3), "encoder")
    real = torch.tensor([[True, False, True, True]])
    out = route_tokens(torch.zeros(1, 4, 1), real, torch.zeros(1, 3), rules=rules, capacity=1)
    assert out.stats.load_E.tolist() == [3, 0, 0]
    assert out.stats.kept_E.tolist() == [1, 1, 1]
