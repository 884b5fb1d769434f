"""Which rank belongs to which group: arithmetic only, no torch, so that a login node can plan any cluster.

Dense parameters see world = tp x dp, expert parameters world = etp x ep x edp; the tensor axis varies fastest, then
expert, then data (Megatron's order, ADR 004). `parallel.mesh.groups` builds the same groups for real; a test compares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from conf.errors import ConfigError

AxisName = Literal["world", "tp", "dp", "ep", "etp", "edp"]
AXIS_NAMES: tuple[AxisName, ...] = ("world", "tp", "dp", "ep", "etp", "edp")


@dataclass(frozen=True, kw_only=True, slots=True)
class Topology:
    """Sizes of every axis. Build with `make_topology`, which checks that they fit."""

    world: int
    tp: int
    ep: int
    etp: int

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


def make_topology(*, world: int, tp: int = 1, ep: int = 1, etp: int | None = None) -> Topology:
    """A checked topology; `etp=None` means tp. Raises ConfigError naming the field that does not fit."""
    etp = tp if etp is None else etp
    if tp < 1 or world % tp:
        raise ConfigError("parallel.tp", got=tp, needs=f"a divisor of the {world} ranks", hint=_divisors(world))
    if etp not in (1, tp):
        raise ConfigError(
            "parallel.etp", got=etp, needs=f"1 or parallel.tp ({tp})", hint="null, which takes parallel.tp"
        )
    if ep < 1 or world % (etp * ep):
        room = world // etp
        raise ConfigError("parallel.ep", got=ep, needs=f"a divisor of ranks / etp = {room}", hint=_divisors(room))
    return Topology(world=world, tp=tp, ep=ep, etp=etp)


def _divisors(n: int) -> str:
    return "one of " + ", ".join(str(d) for d in range(1, n + 1) if n % d == 0)
