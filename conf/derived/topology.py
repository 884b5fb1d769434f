"""Which rank belongs to which group: arithmetic only, no torch, so that a login node can plan any cluster.

Dense parameters see world = tp x dp, expert parameters world = etp x ep x edp; the tensor axis varies fastest, then
expert, then data (Megatron's order, ADR 004). `parallel.mesh.groups` builds the same groups for real; a test compares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from conf.schema import RawRunConfig, RunConfig

AxisName = Literal["world", "tp", "dp", "ep", "etp", "edp"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Topology:
    """Sizes of every axis. `conf.rules.layout.check_ranks` refuses sizes that do not fit before one is made."""

    world: int
    tp: int
    ep: int
    etp: int

    def __post_init__(self) -> None:
        assert self.world % self.tp == 0, self
        assert self.etp in (1, self.tp), self
        assert self.world % (self.etp * self.ep) == 0, self

    @property
    def dp(self) -> int:
        """Ranks that hold different sequences."""
        return self.world // self.tp

    @property
    def edp(self) -> int:
        """Copies of one expert shard."""
        return self.world // (self.etp * self.ep)

    def size(self, axis: AxisName) -> int:
        """Ranks along an axis."""
        return getattr(self, axis)

    def stride(self, axis: AxisName) -> int:
        """Distance in global rank between neighbours on an axis."""
        return {"world": 1, "tp": 1, "dp": self.tp, "etp": 1, "ep": self.etp, "edp": self.etp * self.ep}[axis]

    def position(self, axis: AxisName, rank: int) -> int:
        """Rank along an axis of a global rank."""
        return rank // self.stride(axis) % self.size(axis)

    def members(self, axis: AxisName, rank: int) -> tuple[int, ...]:
        """Global ranks of the group along `axis` that holds global rank `rank`, in axis order."""
        stride = self.stride(axis)
        first = rank - self.position(axis, rank) * stride
        return tuple(first + i * stride for i in range(self.size(axis)))

    def groups(self, axis: AxisName) -> tuple[tuple[int, ...], ...]:
        """Every group along an axis, ordered by first rank."""
        return tuple(self.members(axis, rank) for rank in range(self.world) if self.position(axis, rank) == 0)


def topology(cfg: RunConfig) -> Topology:
    """The axes of a run."""
    parallel = cfg.parallel
    return Topology(world=world_size(cfg), tp=parallel.tp, ep=parallel.ep, etp=parallel.etp)


def world_size(cfg: RawRunConfig) -> int:
    """Ranks of the whole run."""
    return cfg.launch.nproc * cfg.launch.nodes
