"""Where ZeRO keeps a parameter: pieces of flat partitions, one partition per data rank, and how to move the pieces.

ZeRO-1/2 lays the parameters of an optimizer group end to end and cuts the line into equal partitions, so that a
parameter lies on one rank or on several. Which rank holds what is arithmetic; no rank has to be asked.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from parallel.mesh import collectives
from parallel.mesh.axes import Axis

PIECE_ELEMENTS = 2**22  # sent at once: 16 MB of fp32


@dataclass(frozen=True, kw_only=True, slots=True)
class Fragment:
    """A run of elements that lies both in one parameter and in one partition."""

    in_parameter: slice  # of the flattened parameter
    in_partition: slice  # of the rank's flat partition


@dataclass(frozen=True, kw_only=True, slots=True)
class FlatParameter:
    """A parameter, and where in its optimizer group's line it lies."""

    name: str
    parameter: nn.Parameter
    group: int  # index of the optimizer group
    offset: int  # of its first element in the group's line
    partition_size: int
    axis: Axis  # whose ranks hold the partitions, in order

    def fragment(self, rank: int) -> Fragment | None:
        """The part that axis rank `rank` holds, if any."""
        start, end = rank * self.partition_size, (rank + 1) * self.partition_size
        first, last = max(self.offset, start), min(self.offset + self.parameter.numel(), end)
        if first >= last:
            return None
        return Fragment(
            in_parameter=slice(first - self.offset, last - self.offset),
            in_partition=slice(first - start, last - start),
        )


def collect(where: FlatParameter, partition: Tensor, owner: int) -> Tensor | None:
    """The whole local shard, on the owner, on CPU, in the partition's dtype; None on other ranks.

    Collective along the axis, point to point: only ranks that hold a fragment send, in bounded pieces.
    """
    axis = where.axis
    mine = where.fragment(axis.rank)
    if axis.rank != owner:
        if mine is not None:
            for piece in partition[mine.in_partition].split(PIECE_ELEMENTS):
                collectives.send(piece.contiguous(), axis, owner)
        return None
    whole = torch.empty(where.parameter.numel(), dtype=partition.dtype)
    for rank in range(axis.size):
        fragment = where.fragment(rank)
        if fragment is None:
            continue
        if rank == owner:
            whole[fragment.in_parameter] = partition[fragment.in_partition].cpu()
            continue
        for piece in whole[fragment.in_parameter].split(PIECE_ELEMENTS):
            received = torch.empty_like(piece, device=partition.device)
            piece.copy_(collectives.receive(received, axis, rank))
    return whole.view(where.parameter.shape)
