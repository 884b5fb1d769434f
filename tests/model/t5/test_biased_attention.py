"""Attention with a trained bias, written out: against autograd of the formula, in blocks, and in narrow dtypes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from model.t5 import biased_attention as module
from model.t5.biased_attention import biased_attention
from model.t5.position import MASKED

B, H, Q, M, K = 3, 2, 7, 5, 4


def inputs(dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], Tensor, Tensor]:
    """q, k, v and bias that want gradients; a mask that hides all keys of one row's tail; the output's gradient."""
    random = torch.Generator().manual_seed(0)
    # Heads lie as `Attention` leaves them: [B, L, H, K] seen as [B, H, L, K].
    q, k, v = (torch.randn(B, n, H, K, generator=random).to(dtype).transpose(1, 2) for n in (Q, M, M))
    bias = torch.randn(1, H, Q, M, generator=random).to(dtype)
    mask = torch.zeros(B, 1, 1, M, dtype=dtype)
    mask[1, ..., 2:] = MASKED
    cotangent = torch.randn(B, H, Q, K, generator=random).to(dtype)
    return [t.requires_grad_() for t in (q, k, v, bias)], mask, cotangent


def formula(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
    scores = q @ k.transpose(-1, -2) + bias
    return (scores if mask is None else scores + mask).softmax(-1) @ v


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("elements", [2**25, 2 * B * H * M, 1])  # one block, blocks of two queries, of one
def test_output_and_gradients_are_those_of_the_formula(monkeypatch, elements, masked):
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", elements)
    wanted, mask, cotangent = inputs()
    out, expected = (f(*wanted, mask if masked else None) for f in (biased_attention, formula))
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-13)
    ours, theirs = (torch.autograd.grad(y, wanted, cotangent) for y in (out, expected))
    for got, want in zip(ours, theirs, strict=True):
        assert got.shape == want.shape
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_gradients_agree_with_differences():
    (q, k, v, bias), mask, _ = inputs()
    assert torch.autograd.gradcheck(lambda *wanted: biased_attention(*wanted, mask), (q, k, v, bias))


@pytest.mark.parametrize("native", [True, False])
def test_bf16_is_near_whether_products_are_made_in_it_or_in_fp32(monkeypatch, native):
    monkeypatch.setattr(module, "NATIVE_BF16", native)
    wanted, mask, cotangent = inputs(torch.bfloat16)
    out = biased_attention(*wanted, mask)
    assert out.dtype == torch.bfloat16
    grads = torch.autograd.grad(out, wanted, cotangent)
    exact = [t.detach().double().requires_grad_() for t in wanted]
    expected = formula(*exact, mask.double())
    for got, want in zip(
        (out, *grads), (expected, *torch.autograd.grad(expected, exact, cotangent.double())), strict=True
    ):
        assert got.dtype == torch.bfloat16
        assert (got.double() - want).abs().max() < 0.03 * want.abs().max()


class Watch(TorchDispatchMode):
    """Sizes of all tensors that operations give."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.seen |= {t.numel() for t in (out if isinstance(out, tuple) else (out,)) if isinstance(t, Tensor)}
        return out


@pytest.mark.parametrize(("elements", "blocks"), [(2**25, False), (2**12, True)])
def test_long_inputs_never_hold_all_scores(monkeypatch, elements, blocks):
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", elements)
    wanted = [torch.randn(2, 2, 256, 2).requires_grad_() for _ in range(3)]
    bias = torch.randn(1, 2, 256, 256).requires_grad_()
    with Watch() as watch:
        torch.autograd.grad(biased_attention(*wanted, bias, None).sum(), (*wanted, bias))
    scores = 2 * 2 * 256 * 256
    assert (scores in watch.seen) != blocks
    assert max(watch.seen - {bias.numel()}) == (2**12 if blocks else scores)
