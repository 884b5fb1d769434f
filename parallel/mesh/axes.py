"""Shared types of the parallel box: who a rank is and which groups it belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """One axis of a mesh as this rank sees it. `group` is None exactly when the axis has size 1 or no backend runs."""

    name: str
    size: int
    rank: int
    ranks: tuple[int, ...]  # global ranks of this rank's group, in axis order
    group: ProcessGroup | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Mesh:
    """Every group of this rank. Passed in, never looked up; built by `parallel.mesh.groups`."""

    world: Axis
    tp: Axis
    dp: Axis
    ep: Axis
    etp: Axis
    edp: Axis
    control: Axis  # all ranks, always gloo: decisions, barriers, checkpoint coordination; never the step's data

    @property
    def is_main(self) -> bool:
        """Whether this is global rank 0, the only one that logs."""
        return self.world.rank == 0

    @property
    def has_replicas(self) -> bool:
        """Whether any parameter has copies whose gradients come from other rows: dense ones over dp, experts over edp.

        Whole experts (etp 1) have copies on tensor ranks also where dp is 1.
        """
        return self.dp.size > 1 or self.edp.size > 1


def single_process() -> Mesh:
    """Groups of a run without torch.distributed: every axis has size 1."""

    def axis(name: str) -> Axis:
        return Axis(name=name, size=1, rank=0, ranks=(0,), group=None)

    return Mesh(
        world=axis("world"), tp=axis("tp"), dp=axis("dp"), ep=axis("ep"),
        etp=axis("etp"), edp=axis("edp"), control=axis("control"),
    )  # fmt: skip
