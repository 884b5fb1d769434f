"""Dispatch and combine against loops, their gradients, and that they read instead of add."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from conf.routing.settings import moe_rules
from model.moe.gather import RowIndex, buffer_index, combine, dispatch, sorted_index
from model.moe.types import Routing
from tests.model.moe.routers.call import route_tokens
from tests.model.moe.routers.test_router import problem
from tests.model.t5.build import MOE

MESH = moe_rules(MOE, "encoder")


def routed(capacity: int, *, groups: int = 2, tokens: int = 6, experts: int = 3) -> tuple[torch.Tensor, Routing]:
    x, real, weight = problem(1, groups, tokens, experts)
    return x, route_tokens(x, real, weight, rules=MESH, capacity=capacity)


@pytest.mark.parametrize("capacity", [0, 1, 2, 9])
def test_equals_loops(capacity):
    x, routing = routed(capacity)
    index = buffer_index(routing)
    buffer = dispatch(x, index)
    want = torch.zeros(3, 2, capacity, 5, dtype=torch.float64)
    out = torch.zeros_like(x)
    for g in range(2):
        for s in range(6):
            slot = int(routing.slots_GSK[g, s, 0])
            if slot < 3 * capacity:
                want[slot // capacity, g, slot % capacity] = x[g, s]
                out[g, s] = routing.gates_GSK[g, s, 0] * x[g, s]
    assert torch.equal(buffer, want)
    assert torch.equal(combine(buffer, routing.gates_GSK, index), out)


@pytest.mark.parametrize("capacity", [0, 1, 4])
def test_gradcheck_top1(capacity):
    x, routing = routed(capacity)
    index = buffer_index(routing)
    buffer = torch.randn(3, 2, capacity, 5, dtype=torch.float64, requires_grad=True)
    gates = torch.rand_like(routing.gates_GSK).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: dispatch(x, index), (x.requires_grad_(),))
    if capacity:
        assert torch.autograd.gradcheck(lambda b, g: combine(b, g, index), (buffer, gates))


def two_choices() -> RowIndex:
    """One group of three tokens, two experts with two slots: token 0 at both, token 1 at expert 1, token 2 at none."""
    rows = torch.tensor([[0, 2], [3, 4], [4, 4]])
    return RowIndex(rows, torch.tensor([0, 3, 0, 1]), torch.tensor([0, 6, 1, 2]), (2, 1, 2))


def test_two_choices_sum_and_gradcheck():
    index = two_choices()
    x = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    gates = torch.rand(1, 3, 2, dtype=torch.float64, requires_grad=True)
    buffer = dispatch(x, index)
    assert torch.equal(buffer[:, 0, 0], x[0, [0, 0]])
    assert torch.equal(buffer[1, 0, 1], x[0, 1])
    y = combine(buffer, gates, index)
    torch.testing.assert_close(y[0, 0], gates[0, 0].sum() * x[0, 0])
    assert torch.equal(y[0, 2], torch.zeros(4, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda x: dispatch(x, index), (x,))
    free = torch.randn(2, 1, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda b, g: combine(b, g, index), (free, gates))


@pytest.mark.parametrize("capacity", [1, 2, 9])
@pytest.mark.parametrize("choices", [1, 2, 3])
def test_sorted_rows_are_the_kept_choices_expert_by_expert(capacity, choices):
    x, real, weight = problem(1, 2, 6, 3)
    router = "switch" if choices == 1 else "top_2"
    moe = replace(MOE, semantics="flaxformer", router=router, num_experts=3, top_k=choices)
    routing = route_tokens(x, real, weight, rules=moe_rules(moe, "encoder"), capacity=capacity)
    index, counts = sorted_index(routing)
    kept = [
        (int(slot) // capacity, (g * 6 + s) * choices + k)
        for g, group in enumerate(routing.slots_GSK)
        for s, token in enumerate(group)
        for k, slot in enumerate(token)
        if int(slot) < 3 * capacity
    ]
    want = [choice for _, choice in sorted(kept)]
    assert counts.tolist() == [sum(expert == e for expert, _ in kept) for e in range(3)]
    empty = [12 * choices] * (12 * choices - len(want))
    assert index.choice_of_rows().tolist() == want + empty
    rows = dispatch(x, index)
    assert torch.equal(rows[: len(want)], x.flatten(0, 1)[[choice // choices for choice in want]])
    assert not rows[len(want) :].any()
    gates = torch.rand_like(routing.gates_GSK)
    got, same = combine(rows, gates, index), buffer_index(routing)
    torch.testing.assert_close(got, combine(dispatch(x, same), gates, same))
    free = torch.randn_like(rows).requires_grad_()
    assert torch.autograd.gradcheck(lambda r, g: combine(r, g, index), (free, gates.requires_grad_()))


def test_empty_slots_do_not_read_garbage():
    x, routing = routed(4)
    x = torch.where(torch.arange(6)[None, :, None] == 5, float("nan"), x)  # a token that must not leak into empty slots
    index = buffer_index(routing)
    empty = routing.tokens_GEC.transpose(0, 1) == 6
    assert bool(empty.any())
    assert torch.equal(dispatch(x, index)[empty], torch.zeros(int(empty.sum()), 5, dtype=torch.float64))


def test_the_gradient_of_an_fp32_gate_on_bf16_rows_is_summed_in_fp32():
    random = torch.Generator().manual_seed(2)
    index = two_choices()
    buffer = torch.randn(2, 1, 2, 64, generator=random).bfloat16()
    gates = torch.rand(1, 3, 2, generator=random).requires_grad_()
    cotangent = torch.randn(1, 3, 64, generator=random).bfloat16()
    (combine(buffer, gates, index) * cotangent).sum().backward()
    rows = torch.cat((buffer.view(-1, 64), torch.zeros(1, 64)))[index.rows_NK].float()  # the last: no slot
    want = (rows * cotangent[0].float().unsqueeze(1)).sum(-1)
    assert gates.grad is not None
    torch.testing.assert_close(gates.grad[0], want, rtol=1e-5, atol=1e-5)
