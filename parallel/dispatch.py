"""Moving expert buffers between ranks: what an expert layer asks of the layout, and the one-process answer.

Shape suffixes: G groups, E experts, C capacity, D d_model, X experts of this rank (E/ep), R = ep * G * C buffer rows of
one expert.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


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


class LocalExchange:
    """All experts and all groups in this process; no process group is needed."""

    ep_size, ep_rank, etp_size, etp_rank, group_shards = 1, 0, 1, 0, 1

    def enter(self, x: Tensor) -> Tensor:
        """See `ExpertExchange`."""
        return x

    def leave(self, x: Tensor) -> Tensor:
        """See `ExpertExchange`."""
        return x

    def shared_weight(self, weight: Tensor) -> Tensor:
        """See `ExpertExchange`."""
        return weight

    def sum_shards(self, values: Tensor) -> Tensor:
        """See `ExpertExchange`."""
        return values

    def to_experts(self, buffer_EGCD: Tensor) -> Tensor:
        """See `ExpertExchange`."""
        return buffer_EGCD.flatten(1, 2)

    def from_experts(self, rows_XRD: Tensor, *, groups: int) -> Tensor:
        """See `ExpertExchange`."""
        return rows_XRD.unflatten(1, (groups, rows_XRD.shape[1] // groups))

    def gather_rows(self, rows_G: Tensor) -> Tensor:
        """See `ExpertExchange`."""
        return rows_G
