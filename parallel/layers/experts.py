"""Moving expert buffers between ranks: what an expert layer asks of the layout, and the answers with and without ranks.

With etp = tp the tensor ranks hold the same tokens and each computes its columns of every expert. With etp = 1 < tp
experts are whole and each tensor rank routes its share of the groups (ADR 004). Either way the engine never sums over
tp: every gradient a rank ends with is already that of all tensor ranks.

Shape suffixes: G groups, E experts, C capacity, D d_model, P ranks along ep, X experts of this rank (E/ep),
R = ep * G * C buffer rows of one expert, or all sorted rows of a rank, whose number is its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from typing_extensions import override

from parallel.mesh.axes import Mesh
from parallel.mesh.collectives import (
    all_gather,
    all_to_all,
    all_to_all_rows,
    copy_to,
    gather_from,
    reduce_from,
    scatter_to,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RowPlan:
    """Where sorted rows go and how they lie when they have arrived."""

    counts_X: Tensor  # int64 rows of each of this rank's experts, from everywhere
    rows: int  # of this rank before the exchange, with those of dropped choices behind
    sent: tuple[int, ...] = ()  # rows for each rank of ep; empty: nothing travels
    received: tuple[int, ...] = ()  # rows from each rank of ep
    order_R: Tensor | None = None  # arrived row of each row by expert
    back_R: Tensor | None = None  # its inverse


class ExpertExchange(Protocol):
    """How an expert layer's tensors travel. All methods are differentiable unless they say otherwise.

    Every rank of a group must call the same methods in the same order with tensors of the same shape.
    """

    ep_size: int  # ranks that share the experts
    ep_rank: int
    etp_size: int  # shards of one expert
    etp_rank: int
    group_shards: int  # tensor ranks that share the groups: tp if experts are whole on each of them, else 1

    def enter(self, x: Tensor) -> Tensor:
        """This rank's share of whole groups, `[G, ..]` -> `[G / group_shards, ..]`; backward all-gathers."""
        ...

    def leave(self, x: Tensor) -> Tensor:
        """All groups again: the reverse of `enter`; backward keeps this rank's share."""
        ...

    def shared_weight(self, weight: Tensor) -> Tensor:
        """A weight that each rank applies to its share of the groups; backward sums over those ranks."""
        ...

    def sum_shards(self, values: Tensor) -> Tensor:
        """Sum of partial losses or counts over the ranks that share the groups; backward is the identity."""
        ...

    def to_experts(self, buffer_EGCD: Tensor) -> Tensor:
        """Buffers of all experts here -> rows of this rank's experts from everywhere, `[X, R, D]`."""
        ...

    def from_experts(self, rows_XRD: Tensor, *, groups: int) -> Tensor:
        """The reverse of `to_experts`: `[E, groups, C, D]`, summed over the shards of each expert."""
        ...

    def gather_rows(self, rows_G: Tensor) -> Tensor:
        """Numbers of the groups whose rows `to_experts` delivers, in its order; no gradient."""
        ...

    def plan_rows(self, counts_E: Tensor, *, rows: int) -> RowPlan:
        """How `rows` rows travel that begin with `counts_E` rows of each expert in turn.

        Waits for the device where they do travel.
        """
        ...

    def rows_to_experts(self, rows: Tensor, plan: RowPlan) -> Tensor:
        """Sorted rows `[rows, ..]` here -> rows of this rank's experts from everywhere, sorted by expert, `[R, ..]`."""
        ...

    def rows_from_experts(self, rows: Tensor, plan: RowPlan) -> Tensor:
        """The reverse of `rows_to_experts`, summed over the shards of each expert; zeros where choices were dropped."""
        ...


class LocalExchange(ExpertExchange):
    """All experts and all groups in this process; no process group is needed."""

    ep_size, ep_rank, etp_size, etp_rank, group_shards = 1, 0, 1, 0, 1

    @override
    def enter(self, x: Tensor) -> Tensor:
        return x

    @override
    def leave(self, x: Tensor) -> Tensor:
        return x

    @override
    def shared_weight(self, weight: Tensor) -> Tensor:
        return weight

    @override
    def sum_shards(self, values: Tensor) -> Tensor:
        return values

    @override
    def to_experts(self, buffer_EGCD: Tensor) -> Tensor:
        return buffer_EGCD.flatten(1, 2)

    @override
    def from_experts(self, rows_XRD: Tensor, *, groups: int) -> Tensor:
        return rows_XRD.unflatten(1, (groups, rows_XRD.shape[1] // groups))

    @override
    def gather_rows(self, rows_G: Tensor) -> Tensor:
        return rows_G

    @override
    def plan_rows(self, counts_E: Tensor, *, rows: int) -> RowPlan:
        return RowPlan(counts_X=counts_E, rows=rows)

    @override
    def rows_to_experts(self, rows: Tensor, plan: RowPlan) -> Tensor:
        return rows

    @override
    def rows_from_experts(self, rows: Tensor, plan: RowPlan) -> Tensor:
        return rows


class MeshExchange(ExpertExchange):
    """The exchange of a run with ranks; each step along an axis of size 1 costs nothing."""

    def __init__(self, mesh: Mesh) -> None:
        self._ep, self._etp, self._tp = mesh.ep, mesh.etp, mesh.tp
        self.ep_size, self.ep_rank = mesh.ep.size, mesh.ep.rank
        self.etp_size, self.etp_rank = mesh.etp.size, mesh.etp.rank
        self.group_shards = mesh.tp.size // mesh.etp.size

    @override
    def enter(self, x: Tensor) -> Tensor:
        return x if self.group_shards == 1 else scatter_to(x, self._tp)

    @override
    def leave(self, x: Tensor) -> Tensor:
        # What follows is the same on all tensor ranks, so each holds the whole gradient.
        return x if self.group_shards == 1 else gather_from(x, self._tp)

    @override
    def shared_weight(self, weight: Tensor) -> Tensor:
        return weight if self.group_shards == 1 else copy_to(weight, self._tp)

    @override
    def sum_shards(self, values: Tensor) -> Tensor:
        return values if self.group_shards == 1 else reduce_from(values, self._tp)

    @override
    def to_experts(self, buffer_EGCD: Tensor) -> Tensor:
        # Rank j's experts are one block of dim 0; sizes are compared before data moves.
        E, G, C, D = buffer_EGCD.shape
        received_PXGCD = all_to_all(buffer_EGCD, self._ep).view(self.ep_size, E // self.ep_size, G, C, D)
        rows_XRD = received_PXGCD.transpose(0, 1).reshape(E // self.ep_size, self.ep_size * G * C, D)
        return copy_to(rows_XRD, self._etp)

    @override
    def from_experts(self, rows_XRD: Tensor, *, groups: int) -> Tensor:
        X, R, D = rows_XRD.shape
        rows_XPGCD = reduce_from(rows_XRD, self._etp).view(X, self.ep_size, groups, R // (self.ep_size * groups), D)
        return all_to_all(rows_XPGCD.transpose(0, 1).flatten(0, 1), self._ep)

    @override
    def gather_rows(self, rows_G: Tensor) -> Tensor:
        return all_gather(rows_G, self._ep).flatten()

    @override
    def plan_rows(self, counts_E: Tensor, *, rows: int) -> RowPlan:
        if self.ep_size == 1:
            return RowPlan(counts_X=counts_E, rows=rows)
        counts_PX = all_to_all(counts_E, self._ep).view(self.ep_size, -1)
        counts = torch.stack((counts_E.view_as(counts_PX).sum(1), counts_PX.sum(1))).tolist()
        # Arrived rows lie by source, then by expert: a stable sort by expert keeps the sources' order.
        expert_PX = torch.arange(counts_PX.shape[1], device=counts_PX.device).expand_as(counts_PX)
        order_R = (
            expert_PX.flatten().repeat_interleave(counts_PX.flatten(), output_size=sum(counts[1])).argsort(stable=True)
        )
        return RowPlan(
            counts_X=counts_PX.sum(0),
            rows=rows,
            sent=tuple(counts[0]),
            received=tuple(counts[1]),
            order_R=order_R,
            back_R=order_R.argsort(),
        )

    @override
    def rows_to_experts(self, rows: Tensor, plan: RowPlan) -> Tensor:
        if plan.order_R is not None and plan.back_R is not None:
            kept = rows[: sum(plan.sent)]
            rows = _permute(all_to_all_rows(kept, plan.sent, plan.received, self._ep), plan.order_R, plan.back_R)
        return copy_to(rows, self._etp)

    @override
    def rows_from_experts(self, rows: Tensor, plan: RowPlan) -> Tensor:
        rows = reduce_from(rows, self._etp)
        if plan.order_R is None or plan.back_R is None:
            return rows
        rows = all_to_all_rows(_permute(rows, plan.back_R, plan.order_R), plan.received, plan.sent, self._ep)
        return torch.cat((rows, rows.new_zeros(plan.rows - len(rows), *rows.shape[1:])))


class _Permute(torch.autograd.Function):
    """Rows in another order; backward reads them in the inverse order, which neither adds nor needs atomics."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order_R: Tensor, back_R: Tensor) -> Tensor:
        ctx.save_for_backward(back_R)
        return rows.index_select(0, order_R)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (back_R,) = ctx.saved_tensors
        return grads[0].index_select(0, back_R), None, None


def _permute(rows: Tensor, order_R: Tensor, back_R: Tensor) -> Tensor:
    return _Permute.apply(rows, order_R, back_R)  # type: ignore[return-value]


def build_exchange(mesh: Mesh) -> ExpertExchange:
    """The exchange of this rank's layout: local when no axis that experts see is cut."""
    whole = mesh.ep.size == 1 and mesh.etp.size == 1 and mesh.tp.size == 1
    return LocalExchange() if whole else MeshExchange(mesh)
