"""Dispatch and combine as gathers in both directions: each token knows its slots, each slot its token.

Forward and backward read rows and never add into them, so both are deterministic on every device and need neither
atomics nor host syncs.

Shape suffixes: G groups, S tokens per group, E experts, C capacity, D d_model, K choices per token; N = G * S tokens,
R = E * G * C buffer rows. Buffers are expert-major, `[E, G, C, D]`: at one process they are the operand of the experts'
batched product as they lie, and the share of an expert-parallel rank is one contiguous block.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.moe.types import Routing


class SlotIndex(NamedTuple):
    """Flat row numbers of one routing decision, shared by dispatch and combine."""

    rows_NK: Tensor  # int64 buffer row of each choice; R: dropped
    tokens_R: Tensor  # int64 token of each buffer row; N: empty
    experts: int
    groups: int
    capacity: int


def slot_index(routing: Routing) -> SlotIndex:
    """Number the slots of `routing` as rows of an `[E, G, C]` buffer and its tokens as rows of a `[G, S]` one."""
    G, E, C = routing.tokens_GEC.shape
    S = routing.slots_GSK.shape[1]
    group_G = torch.arange(G, device=routing.slots_GSK.device)
    slot_GSK = routing.slots_GSK
    expert_GSK = torch.div(slot_GSK, max(C, 1), rounding_mode="floor")
    # slot = e * C + c in a group; row = e * G * C + g * C + c = slot + C * (e * (G - 1) + g)
    row_GSK = slot_GSK + C * (expert_GSK * (G - 1) + group_G[:, None, None])
    row_GSK = torch.where(slot_GSK < E * C, row_GSK, E * G * C)
    token_GEC = torch.where(routing.tokens_GEC < S, routing.tokens_GEC + S * group_G[:, None, None], G * S)
    return SlotIndex(row_GSK.flatten(0, 1), token_GEC.transpose(0, 1).reshape(-1), E, G, C)


def dispatch(x_GSD: Tensor, index: SlotIndex) -> Tensor:
    """Buffer `[E, G, C, D]` of the tokens in their slots; empty slots are zero."""
    rows_RD = _Dispatch.apply(x_GSD.flatten(0, 1), index.rows_NK, index.tokens_R)
    return rows_RD.view(index.experts, index.groups, index.capacity, x_GSD.shape[-1])  # type: ignore[union-attr]


def combine(buffer_EGCD: Tensor, gates_GSK: Tensor, index: SlotIndex) -> Tensor:
    """Sum over a token's choices of gate * its buffer row: `[G, S, D]`; exactly 0 for a token without a slot.

    `gates_GSK` has the buffer's dtype (the caller casts: the reference rounds combine weights to the activations').
    """
    assert gates_GSK.dtype == buffer_EGCD.dtype, f"gates {gates_GSK.dtype}, buffer {buffer_EGCD.dtype}"
    G, S, _ = gates_GSK.shape
    rows_RD = buffer_EGCD.reshape(-1, buffer_EGCD.shape[-1])
    y_ND = _Combine.apply(rows_RD, gates_GSK.flatten(0, 1), index.rows_NK, index.tokens_R)
    return y_ND.view(G, S, -1)  # type: ignore[union-attr]


def _take(source_MD: Tensor, index: Tensor) -> Tensor:
    """Rows of `source_MD` at a flat index; the index M, one past the end, reads zeros."""
    padded = torch.cat((source_MD, source_MD.new_zeros(1, source_MD.shape[1])))
    return padded.index_select(0, index.flatten())


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, rows_NK: Tensor, tokens_R: Tensor) -> Tensor:
        ctx.save_for_backward(rows_NK)
        return _take(x_ND, tokens_R)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (rows_NK,) = ctx.saved_tensors
        grad_RD = grads[0]
        return _sum_choices(_take(grad_RD, rows_NK), rows_NK), None, None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_RD: Tensor, gates_NK: Tensor, rows_NK: Tensor, tokens_R: Tensor) -> Tensor:
        ctx.save_for_backward(rows_RD, gates_NK, rows_NK, tokens_R)
        return _sum_choices(_take(rows_RD, rows_NK) * gates_NK.reshape(-1, 1), rows_NK)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows_RD, gates_NK, rows_NK, tokens_R = ctx.saved_tensors
        grad_ND = grads[0]
        # The gate of a buffer row is that of the choice, among its token's K, that points back at the row.
        own_RK = _take(rows_NK, tokens_R) == torch.arange(len(tokens_R), device=tokens_R.device).unsqueeze(1)
        gate_R = (_take(gates_NK, tokens_R) * own_RK).sum(1)
        grad_rows_RD = _take(grad_ND, tokens_R) * gate_R.unsqueeze(1)
        picked_NKD = _take(rows_RD, rows_NK).view(*rows_NK.shape, -1)
        grad_gates_NK = (picked_NKD * grad_ND.unsqueeze(1)).sum(-1)
        return grad_rows_RD, grad_gates_NK, None, None


def _sum_choices(picked: Tensor, rows_NK: Tensor) -> Tensor:
    """Add up the K rows of each token, given in token order."""
    return picked if rows_NK.shape[1] == 1 else picked.view(*rows_NK.shape, -1).sum(1)
