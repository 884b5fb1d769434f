"""Every router against the loops of `router_oracle`: slots exactly, gates, losses, counts; and their gradients."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.routing.settings import moe_rules
from conf.schema import MoeConfig
from model.moe.gather import buffer_index, combine, dispatch
from tests.model.moe.routers import router_oracle as oracle
from tests.model.moe.routers.call import route_tokens
from tests.model.moe.routers.test_router import problem
from tests.model.t5.build import MOE

# name -> settings, and the oracle of one group
ROUTERS = {
    "mesh_tf switch": ({"router": "switch"}, lambda *a: oracle.token_choice(*a, k=1, by_gate=False, real_only=True)),
    "mesh_tf switch_max": ({"router": "switch_max"}, oracle.switch_max),
    "mesh_tf top_2": ({"router": "top_2"}, lambda *a: oracle.top_2(*a, policy="all", threshold=0.0)),
    "mesh_tf top_2 none": (
        {"router": "top_2", "second_policy": "none"},
        lambda *a: oracle.top_2(*a, policy="none", threshold=0.0),
    ),
    "mesh_tf top_2 threshold": (
        {"router": "top_2", "second_policy": "threshold", "second_threshold": 0.3},
        lambda *a: oracle.top_2(*a, policy="threshold", threshold=0.3),
    ),
    "mesh_tf ntlb": ({"router": "ntlb", "top_k": 2}, lambda *a: oracle.ntlb(*a, k=2)),
    "mesh_tf expert_choice": ({"router": "expert_choice"}, lambda *a: oracle.expert_choice(*a, over_tokens=True)),
    "flaxformer switch": (
        {"router": "switch"},
        lambda *a: oracle.token_choice(*a, k=1, by_gate=False, real_only=False),
    ),
    "flaxformer top_2": (
        {"router": "top_2"},
        lambda *a: oracle.token_choice(*a, k=2, by_gate=False, real_only=False),
    ),
    "flaxformer top_2 ignored": (
        {"router": "top_2", "padding": "ignored"},
        lambda *a: oracle.token_choice(*a, k=2, by_gate=False, real_only=True),
    ),
    "flaxformer switch_max k2": (
        {"router": "switch_max", "top_k": 2, "padding": "ignored"},
        lambda *a: oracle.token_choice(*a, k=2, by_gate=True, real_only=True),
    ),
    "flaxformer expert_choice": (
        {"router": "expert_choice", "padding": "ignored"},
        lambda *a: oracle.expert_choice(*a, over_tokens=False),
    ),
}


def moe_of(name: str) -> MoeConfig:
    return replace(MOE, semantics=name.split()[0], **ROUTERS[name][0])  # type: ignore[arg-type]


def run(name: str, x, real, weight, capacity: int):
    return route_tokens(x, real, weight, rules=moe_rules(moe_of(name), "encoder"), capacity=capacity)


@pytest.mark.parametrize("name", ROUTERS)
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    groups=st.integers(1, 3),
    tokens=st.integers(1, 12),
    experts=st.integers(2, 6),
    capacity=st.integers(0, 14),
    pads=st.sampled_from([0.0, 0.3, 1.0]),
    kind=st.sampled_from(["plain", "ties", "one_expert"]),
)
def test_slots_gates_and_counts_equal_loops(name, seed, groups, tokens, experts, capacity, pads, kind):
    x, real, weight = problem(seed, groups, tokens, experts, pads=pads, ties=kind == "ties")
    if kind == "one_expert":
        x[..., 0], weight[0] = 3.0, torch.arange(experts) * -2.0
    if kind == "ties":  # equal scores must be equal in the loops too: tokens are copies of few
        x = x[:, :1].expand_as(x).contiguous()
    ours = run(name, x, real, weight, capacity)
    logits = x @ weight
    routed, kept = 0, torch.zeros(experts)
    for g in range(groups):
        want = ROUTERS[name][1](logits[g].tolist(), real[g].tolist(), capacity)
        slots = {slot: s for s in range(tokens) for slot in ours.slots_GSK[g, s].tolist() if slot < experts * capacity}
        assert slots == {e * capacity + c: s for (s, e), (c, _) in want.items()}
        for (s, e), (c, gate) in want.items():
            assert int(ours.tokens_GEC[g, e, c]) == s
            place = ours.slots_GSK[g, s].tolist().index(e * capacity + c)
            assert float(ours.gates_GSK[g, s, place]) == pytest.approx(gate, rel=1e-9)
            kept[e] += bool(real[g, s])
        assert int((ours.tokens_GEC[g] < tokens).sum()) == len(want)
        routed += len({s for s, _ in want if real[g, s]})
    assert torch.equal(ours.stats.kept_E, kept)
    assert int(ours.stats.routed) == routed
    assert int(ours.stats.tokens) == int(real.sum())
    assert torch.isfinite(ours.aux_loss)
    assert torch.isfinite(ours.z_sum)


@pytest.mark.parametrize(
    ("name", "choices", "mean"),
    [("mesh_tf switch", 1, False), ("mesh_tf switch_max", 1, False), ("mesh_tf top_2", 1, False),
     ("mesh_tf ntlb", 2, True), ("flaxformer top_2 ignored", 2, False), ("flaxformer switch_max k2", 2, False)],
)  # fmt: skip
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), tokens=st.integers(1, 10), pads=st.sampled_from([0.0, 0.4, 1.0]))
def test_mended_balance_equals_loops(name, choices, mean, seed, tokens, pads):
    x, real, weight = problem(seed, 2, tokens, 4, pads=pads)
    want = sum(
        oracle.balance((x[g] @ weight).tolist(), real[g].tolist(), choices, mean=mean) for g in range(2)
    )  # fmt: skip
    assert float(run(name, x, real, weight, 3).aux_loss) == pytest.approx(want, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", ROUTERS)
def test_gradcheck_of_output_and_losses(name):
    x, real, weight = problem(3, 2, 6, 4)
    values = torch.randn(4, 2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def outcome(x, weight):
        out = run(name, x, real, weight, 3)
        index = buffer_index(out)
        y = combine(dispatch(x, index) * values, out.gates_GSK, index)
        return y, out.aux_loss, out.z_sum

    assert torch.autograd.gradcheck(outcome, (x.requires_grad_(), weight.requires_grad_()))


def test_padding_in_a_reproduced_balance_counts_and_in_the_mended_one_does_not():
    x, real, weight = problem(5, 1, 8, 4, pads=0.5)
    other = torch.where(real.unsqueeze(-1), x, x + 3.0)
    for router in ("switch", "switch_max", "ntlb"):
        moe = replace(MOE, router=router)
        losses = {
            (defects, which): float(
                route_tokens(tokens, real, weight, rules=moe_rules(replace(moe, defects=defects), "encoder"),
                      capacity=4).aux_loss
            )
            for defects in ("mended", "reproduced")
            for which, tokens in (("x", x), ("other", other))
        }  # fmt: skip
        assert losses["mended", "x"] == losses["mended", "other"]
        assert losses["reproduced", "x"] != losses["reproduced", "other"]


def test_reproduced_expert_choice_takes_padding_when_real_tokens_run_out():
    x, _, weight = problem(1, 1, 4, 2)
    real = torch.tensor([[True, False, False, False]])
    moe = replace(MOE, router="expert_choice")
    mended = route_tokens(x, real, weight, rules=moe_rules(moe, "encoder"), capacity=3)
    assert int((mended.tokens_GEC < 4).sum()) == 2
    taken = route_tokens(x, real, weight, rules=moe_rules(replace(moe, defects="reproduced"), "encoder"), capacity=3)
    assert int((taken.tokens_GEC < 4).sum()) == 6
    assert taken.tokens_GEC[0, 0].tolist() == [0, 1, 2]
    assert float(taken.gates_GSK[0, 1:].abs().max()) == 0.0
    assert int(taken.stats.kept_E.sum()) == 2


@pytest.mark.parametrize("name", ["mesh_tf switch_max", "flaxformer switch_max k2", "flaxformer expert_choice"])
def test_equal_gates_of_different_tokens_queue_in_token_order(name):
    """Tokens whose logits for other experts are the same have the same gate; an fp32 sum in their order splits it."""
    rows = sorted({(2.0, *others) for others in permutations((1.9, 1.7, 0.8, 1.2))})
    p = torch.tensor(rows).sub(2.0).exp()
    assert len((p[:, 0] / p.sum(-1)).unique()) > 1, "these rows are meant to have gates that a plain sum splits"
    n = len(rows)
    out = run(name, torch.tensor(rows).unsqueeze(0), torch.ones(1, n, dtype=torch.bool), torch.eye(5), capacity=n)
    assert out.tokens_GEC[0, 0].tolist() == list(range(n))
