"""Matrix products of sorted rows, each with the matrix of its expert.

Shape suffixes: X experts, R rows, I and O widths going in and out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def grouped_mm(rows_RI: Tensor, weights_XIO: Tensor, ends_X: Tensor) -> Tensor:
    """Rows up to `ends_X[0]` times the first matrix, from there up to `ends_X[1]` times the second, ..: `[R, O]`.

    `ends_X` is int32. What lies behind the last end is undefined, in the result and in its gradient. In bf16 on CUDA
    torch's grouped product, which does not wait for the device; elsewhere a product per expert with rows, which waits
    for `ends_X`: torch's own has no fp64 and, but in bf16, no fake tensors, and on a CPU is no faster (docs/log.md,
    2026-11-30).
    """
    if rows_RI.is_cuda and rows_RI.dtype == torch.bfloat16:
        return F.grouped_mm(rows_RI, weights_XIO, offs=ends_X)
    return _slices(rows_RI, weights_XIO, ends_X)


@torch.library.custom_op("pointsman::grouped_mm", mutates_args=())
def _slices(rows_RI: Tensor, weights_XIO: Tensor, ends_X: Tensor) -> Tensor:
    out_RO = rows_RI.new_empty(len(rows_RI), weights_XIO.shape[2])
    for expert, rows in _parts(ends_X, len(rows_RI)):
        if expert is None:
            out_RO[rows].zero_()
        elif rows.start < rows.stop:
            torch.mm(rows_RI[rows], weights_XIO[expert], out=out_RO[rows])
    return out_RO


@_slices.register_fake
def _(rows_RI: Tensor, weights_XIO: Tensor, ends_X: Tensor) -> Tensor:
    return rows_RI.new_empty(len(rows_RI), weights_XIO.shape[2])


@torch.library.custom_op("pointsman::grouped_mm_backward", mutates_args=())
def _slices_backward(grad_RO: Tensor, rows_RI: Tensor, weights_XIO: Tensor, ends_X: Tensor) -> tuple[Tensor, Tensor]:
    grad_rows_RI, grad_weights_XIO = torch.empty_like(rows_RI), torch.empty_like(weights_XIO)
    for expert, rows in _parts(ends_X, len(rows_RI)):
        if expert is None:
            grad_rows_RI[rows].zero_()
        else:
            torch.mm(grad_RO[rows], weights_XIO[expert].T, out=grad_rows_RI[rows])
            # Without rows a sum of nothing, which is written like any other.
            torch.mm(rows_RI[rows].T, grad_RO[rows], out=grad_weights_XIO[expert])
    return grad_rows_RI, grad_weights_XIO


@_slices_backward.register_fake
def _(grad_RO: Tensor, rows_RI: Tensor, weights_XIO: Tensor, ends_X: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(rows_RI), torch.empty_like(weights_XIO)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_RO: Tensor) -> tuple[Tensor, Tensor, None]:
    return *_slices_backward(grad_RO, *ctx.saved_tensors), None


_slices.register_autograd(_backward, setup_context=_keep)


def _parts(ends_X: Tensor, count: int) -> Iterator[tuple[int | None, slice]]:
    """Every expert with its rows, then those of none."""
    start = 0
    for expert, end in enumerate(ends_X.tolist()):
        yield expert, slice(start, end)
        start = end
    yield None, slice(start, count)
