"""Losses of the routers against loops, for settings that the recordings and the oracle of whole routings leave out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from conf.routing.settings import moe_rules
from model.moe.routers.numerics import Numerics
from tests.model.moe.routers.call import route_tokens
from tests.model.moe.routers.router_oracle import probabilities
from tests.model.moe.routers.test_router import problem
from tests.model.t5.build import MOE


def test_mended_second_loss_counts_real_tokens_alone():
    moe = replace(MOE, semantics="mesh_tf", router="top_2", num_experts=4)
    x, real, weight = problem(3, 2, 9, 4, pads=0.4)
    first, both = (
        route_tokens(x, real, weight, rules=moe_rules(replace(moe, second_loss_weight=w), "encoder"), capacity=9)
        for w in (0.0, 0.5)
    )
    want = 0.0
    for g in range(2):
        tokens = [s for s in range(9) if real[g, s]]
        f, P = [0.0] * 4, [0.0] * 4
        for s in tokens:
            p = probabilities((x[g, s] @ weight).tolist())
            p[p.index(max(p))] = 0.0
            f[p.index(max(p))] += 1 / len(tokens)
            P = [total + one / sum(p) / len(tokens) for total, one in zip(P, p, strict=True)]
        want += 4 * sum(a * b for a, b in zip(f, P, strict=True)) * len(tokens) / 9
    assert float(both.aux_loss - first.aux_loss) == pytest.approx(0.5 * want, rel=1e-6)


def test_second_rate_tokens_are_chosen_by_experts_but_do_not_count_in_their_balance():
    moe = replace(MOE, semantics="mesh_tf", router="expert_choice", num_experts=3, defects="reproduced")
    x, _, weight = problem(4, 1, 6, 3)
    importance = torch.tensor([[1.0, 0.5, 0.0, 1.0, 0.25, 1.0]])
    rules = moe_rules(moe, "encoder")
    out = route_tokens(x, importance == 1, weight, rules=rules, capacity=2, importance_GS=importance)
    logits = (x[0] @ weight).tolist()
    counted = [s for s in range(6) if importance[0, s] > 0]
    columns = [probabilities([logits[s][e] for s in counted]) for e in range(3)]
    attention = [sum(column[i] for column in columns) / 3 for i in range(len(counted))]
    square = sum(a * a for s, a in zip(counted, attention, strict=True) if importance[0, s] == 1)
    assert float(out.aux_loss) == pytest.approx(float(importance.sum()) * square, rel=1e-9)


def test_losses_of_a_router_that_computes_in_bf16_are_fp32():
    moe = replace(MOE, semantics="mesh_tf", router="ntlb", num_experts=4, top_k=2, defects="reproduced")
    x, real, weight = problem(5, 1, 6, 4)
    out = route_tokens(x.bfloat16(), real, weight.bfloat16(), rules=moe_rules(moe, "encoder"), capacity=3)
    assert out.logits_GSE.dtype == torch.bfloat16
    for value in (out.aux_loss, out.z_sum, out.gates_GSK):
        assert value.dtype == torch.float32


def test_the_shares_of_three_choices_are_not_rounded_with_the_router():
    moe = replace(MOE, semantics="mesh_tf", router="ntlb", num_experts=5, top_k=3, defects="reproduced")
    x, _, weight = problem(7, 1, 7, 5)
    real = torch.ones(1, 7, dtype=torch.bool)
    rules = moe_rules(moe, "encoder")
    out = route_tokens(x.bfloat16(), real, weight.bfloat16(), rules=rules, capacity=3)
    assert out.logits_GSE.dtype == torch.bfloat16
    p = Numerics(rules, torch.bfloat16).softmax(out.logits_GSE)[0].tolist()  # rounded to bf16, as the reference has it
    chosen = out.choices_GSQ[0].flatten().tolist()
    want = 5 * sum(chosen.count(e) / 21 * sum(row[e] for row in p) / 7 for e in range(5))
    assert float(out.aux_loss) == pytest.approx(want, rel=1e-6)


def test_scores_by_which_experts_choose_are_fp32_where_the_router_computes_in_bf16():
    moe = replace(MOE, semantics="mesh_tf", router="expert_choice", num_experts=3, router_precision="activation")
    x, _, weight = problem(8, 1, 20, 3)
    real = torch.ones(1, 20, dtype=torch.bool)
    out = route_tokens(x.bfloat16(), real, weight.bfloat16(), rules=moe_rules(moe, "encoder"), capacity=6)
    assert torch.equal(out.logits_GSE, out.logits_GSE.bfloat16().float())
    score_SE = out.logits_GSE[0].float().softmax(0)
    takers_S = (out.gates_GSK[0] > 0).sum(-1)
    for e in range(3):
        tokens = out.tokens_GEC[0, e]
        torch.testing.assert_close(out.gates_GSK[0, tokens, e], score_SE[tokens, e] / takers_S[tokens])


def test_what_falls_on_an_expert_is_counted_without_the_padding_that_is_routed():
    moe = replace(MOE, semantics="flaxformer", router="top_2", num_experts=4)
    x, real, weight = problem(6, 2, 9, 4, pads=0.5)
    out = route_tokens(x, real, weight, rules=moe_rules(moe, "encoder"), capacity=2)
    assert 0 < int(real.sum()) < real.numel()
    assert int(out.stats.load_E.sum()) == 2 * int(real.sum())
