"""Dispatch and combine as gathers in both directions: each token knows its slots, each slot its token.

Forward and backward read rows and never add into them, so both are deterministic on every device and need neither
atomics nor host syncs.

Shape suffixes: G groups, S tokens per group, E experts, C capacity, D d_model, K choices per token; N = G * S tokens,
R rows that experts work on. Rows lie in one of two forms. Buffers are expert-major, `[E, G, C, D]`: at one process they
are the operand of the experts' batched product as they lie, and the share of an expert-parallel rank is one contiguous
block. Sorted rows, `[N * K, D]`, are the kept choices in the order of their experts and behind them as many rows of
zeros as choices were dropped: as many as tokens, however unevenly experts are loaded.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.moe.types import Routing

DIRECT = 2  # slots per token up to which they are read one by one; beyond, rows are summed in token order


class RowIndex(NamedTuple):
    """Flat row numbers of one routing decision, shared by dispatch and combine."""

    rows_NK: Tensor  # int64 row of each choice; R: dropped
    tokens_R: Tensor  # int64 token of each row; N: empty
    # Which choice of its token a row is, int64, flat n * K + k; N * K: empty. None where tokens have one choice.
    choices_R: Tensor | None
    shape: tuple[int, ...]  # in which the R rows are handed over

    def choice_of_rows(self) -> Tensor:
        """`choices_R`, also where tokens have one choice."""
        return self.tokens_R if self.choices_R is None else self.choices_R


def buffer_index(routing: Routing) -> RowIndex:
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
    rows_NK, tokens_R = row_GSK.flatten(0, 1), token_GEC.transpose(0, 1).reshape(-1)
    return RowIndex(rows_NK, tokens_R, _choice_of_rows(rows_NK, tokens_R), (E, G, C))


def sorted_index(routing: Routing) -> tuple[RowIndex, Tensor]:
    """Number the kept choices in the order of their experts, and how many each expert has, int64 [E].

    Choices of one expert stay in token order. Sizes are static: nothing waits for the device.
    """
    G, E, C = routing.tokens_GEC.shape
    _, S, K = routing.slots_GSK.shape
    expert_R, choice_R = torch.div(routing.slots_GSK.flatten(), C, rounding_mode="floor").sort(stable=True)
    ends_E = torch.searchsorted(expert_R, torch.arange(E, device=expert_R.device), right=True)
    count = G * S * K
    row_R = torch.arange(count, device=expert_R.device)
    rows_NK = torch.empty_like(row_R).scatter_(0, choice_R, torch.where(expert_R < E, row_R, count)).view(G * S, K)
    choices_R = torch.where(expert_R < E, choice_R, count)
    tokens_R = torch.div(choices_R, K, rounding_mode="floor")  # of an empty row N
    counts_E = ends_E.diff(prepend=ends_E.new_zeros(1))
    return RowIndex(rows_NK, tokens_R, None if K == 1 else choices_R, (count,)), counts_E


def _choice_of_rows(rows_NK: Tensor, tokens_R: Tensor) -> Tensor | None:
    """For each buffer row the choice, among its token's K, that points at it; None where it is the token itself."""
    N, K = rows_NK.shape
    if K == 1:
        return None
    row_R = torch.arange(len(tokens_R), device=tokens_R.device)
    padded = torch.cat((rows_NK, rows_NK.new_full((1, K), -1)))
    own_RK = padded.index_select(0, tokens_R) == row_R.unsqueeze(1)
    return torch.where(tokens_R < N, tokens_R * K + own_RK.to(torch.int8).argmax(1), N * K)


def dispatch(x_GSD: Tensor, index: RowIndex) -> Tensor:
    """The rows of the tokens, `[*index.shape, D]`; empty ones are zero."""
    rows_RD = _Dispatch.apply(x_GSD.flatten(0, 1), index.rows_NK, index.tokens_R)
    return rows_RD.view(*index.shape, x_GSD.shape[-1])  # type: ignore[union-attr]


def combine(rows: Tensor, gates_GSK: Tensor, index: RowIndex) -> Tensor:
    """Sum over a token's choices of gate * its row of `[*index.shape, D]`: `[G, S, D]`; exactly 0 where all dropped.

    Products and their sum have the wider dtype of the two, the result that of the rows: a caller that wants combine
    weights rounded to the activations, as some references have them, casts the gates.
    """
    G, S, _ = gates_GSK.shape
    rows_RD = rows.reshape(-1, rows.shape[-1])
    y_ND = _Combine.apply(rows_RD, gates_GSK.flatten(0, 1), index.rows_NK, index.tokens_R, index.choices_R)
    return y_ND.view(G, S, -1)  # type: ignore[union-attr]


def _take(source_MD: Tensor, index: Tensor) -> Tensor:
    """Rows of `source_MD` at a flat index; the index M, one past the end, reads zeros."""
    padded = torch.cat((source_MD, source_MD.new_zeros(1, source_MD.shape[1])))
    return padded.index_select(0, index.flatten())


def _sum_slots(rows_RD: Tensor, rows_NK: Tensor, tokens_R: Tensor) -> Tensor:
    """The sum of each token's buffer rows, `[N, D]`, in the order of its choices where they are few."""
    K = rows_NK.shape[1]
    if K <= DIRECT:
        total_ND = _take(rows_RD, rows_NK[:, 0])
        for k in range(1, K):
            total_ND = total_ND + _take(rows_RD, rows_NK[:, k])
        return total_ND
    # Many possible slots, few taken: sort rows by token, then add up each run of equal tokens by doubling. Work is
    # R log K instead of N K, with neither atomics nor sizes that depend on the data.
    R = len(tokens_R)
    order_R = tokens_R.sort(stable=True).indices
    token_R = tokens_R[order_R]
    sum_RD = rows_RD.index_select(0, order_R)
    for level in range((K - 1).bit_length()):
        shift = 2**level
        if shift < R:
            same_R1 = (token_R[shift:] == token_R[:-shift]).unsqueeze(1)
            sum_RD = torch.cat((sum_RD[:shift], sum_RD[shift:] + torch.where(same_R1, sum_RD[:-shift], 0.0)))
    count_N = (rows_NK < R).sum(1)
    last_N = torch.where(count_N > 0, count_N.cumsum(0) - 1, R)
    return _take(sum_RD, last_N)


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, rows_NK: Tensor, tokens_R: Tensor) -> Tensor:
        ctx.save_for_backward(rows_NK, tokens_R)
        return _take(x_ND, tokens_R)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _sum_slots(grads[0], *ctx.saved_tensors), None, None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows_RD: Tensor, gates_NK: Tensor, rows_NK: Tensor, tokens_R: Tensor, choices_R: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(rows_RD, gates_NK, rows_NK, tokens_R, choices_R)
        if rows_NK.shape[1] == 1:
            return (_take(rows_RD, rows_NK) * gates_NK).to(rows_RD.dtype)
        assert choices_R is not None
        gate_R1 = _take(gates_NK.reshape(-1, 1), choices_R)
        return _sum_slots(rows_RD * gate_R1, rows_NK, tokens_R).to(rows_RD.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows_RD, gates_NK, rows_NK, tokens_R, choices_R = ctx.saved_tensors
        taken_RD = _take(grads[0], tokens_R)
        gate_R1 = _take(gates_NK.reshape(-1, 1), tokens_R if choices_R is None else choices_R)
        # The gradient of a gate is computed where its buffer row lies, then read from there.
        wide_RD = taken_RD.to(torch.promote_types(taken_RD.dtype, gates_NK.dtype))
        grad_gate_R1 = (wide_RD * rows_RD).sum(-1, keepdim=True).to(gates_NK.dtype)
        grad_gates_NK = _take(grad_gate_R1, rows_NK).view_as(gates_NK)
        return (taken_RD * gate_R1).to(rows_RD.dtype), grad_gates_NK, None, None, None
