"""Grouped products against a loop, their gradients, and what torch's own say of the same."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from model.moe.grouped import grouped_mm


def problem(counts: list[int], extra: int = 0, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(1)
    rows = torch.randn(sum(counts) + extra, 8, generator=random, dtype=dtype, requires_grad=True)
    weights = torch.randn(len(counts), 8, 16, generator=random, dtype=dtype, requires_grad=True)
    return rows, weights, torch.tensor(counts).cumsum(0, dtype=torch.int32)


@pytest.mark.parametrize("counts", [[4, 0, 5, 0], [0, 0, 0], [1], [0, 3]])
def test_equals_a_product_per_expert_and_its_gradients(counts):
    rows, weights, ends = problem(counts)
    want = torch.cat([part @ weight for part, weight in zip(rows.split(counts), weights, strict=True)])
    torch.testing.assert_close(grouped_mm(rows, weights, ends), want)
    assert torch.autograd.gradcheck(lambda r, w: grouped_mm(r, w, ends), (rows, weights))


def test_rows_behind_the_last_end_reach_no_gradient():
    rows, weights, ends = problem([2, 0, 3], extra=4)
    spoiled = torch.where(torch.arange(9).unsqueeze(1) < 5, rows, float("nan"))
    out = grouped_mm(spoiled, weights, ends)
    out[:5].square().sum().backward()
    assert rows.grad is not None
    assert weights.grad is not None
    assert torch.isfinite(out[:5]).all()
    assert torch.isfinite(rows.grad[:5]).all()
    assert torch.isfinite(weights.grad).all()
    assert torch.equal(weights.grad[1], torch.zeros(8, 16, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_is_what_torchs_grouped_product_gives(dtype):
    """That is what runs on CUDA."""
    rows, weights, ends = problem([4, 0, 5, 0], extra=3, dtype=dtype)
    cotangent = torch.randn(9, 16, generator=torch.Generator().manual_seed(2)).to(dtype)
    found = []
    for product in (lambda: grouped_mm(rows, weights, ends), lambda: F.grouped_mm(rows, weights, offs=ends)):
        out = product()[:9]
        found.append((out, *torch.autograd.grad((out * cotangent).sum(), (rows, weights))))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours[:9], theirs[:9])
