"""Moving expert buffers between ranks: what an expert layer asks of the layout, and the answers with and without ranks.

With etp = tp the tensor ranks hold the same tokens and each computes its columns of every expert. With etp = 1 < tp
experts are whole and each tensor rank routes its share of the groups (ADR 004). Either way the engine never sums over
tp: every gradient a rank ends with is already that of all tensor ranks.

Shape suffixes: G groups, E experts, C capacity, D d_model, P ranks along ep, X experts of this rank (E/ep),
R = ep * G * C buffer rows of one expert.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor
from typing_extensions import override

from parallel.mesh.axes import Mesh
from parallel.mesh.collectives import all_gather, all_to_all, copy_to, gather_from, reduce_from, scatter_to


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


def build_exchange(mesh: Mesh) -> ExpertExchange:
    """The exchange of this rank's layout: local when no axis that experts see is cut."""
    whole = mesh.ep.size == 1 and mesh.etp.size == 1 and mesh.tp.size == 1
    return LocalExchange() if whole else MeshExchange(mesh)
