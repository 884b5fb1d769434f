"""Which rank hands out which piece of state: one owner per logical shard, owners balanced by bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from conf.errors import CheckpointError
from parallel.engine.protocol import STEP
from parallel.layers.sharding import replica_axis
from parallel.mesh.axes import Axis, Mesh


@dataclass(frozen=True, kw_only=True, slots=True)
class StateItem:
    """One local shard of one logical state tensor."""

    name: str
    kind: str
    parameter: nn.Parameter
    nbytes: int
    dims: tuple[int, ...] | None = None

    def axis(self, mesh: Mesh) -> Axis:
        """The axis along which ranks hold copies or pieces of the shard."""
        return replica_axis(self.parameter, mesh)


def assign_owners(items: Iterable[StateItem], mesh: Mesh) -> list[tuple[StateItem, int]]:
    """Every item, in order, with the rank along its axis that owns it: largest first to the least loaded.

    A function of sizes and order alone, so that all ranks of an axis agree without talking.
    """
    listed = list(items)
    loads: dict[str, list[int]] = {}
    owners = [0] * len(listed)
    for i in sorted(range(len(listed)), key=lambda i: -listed[i].nbytes):
        axis = listed[i].axis(mesh)
        load = loads.setdefault(axis.name, [0] * axis.size)
        owners[i] = load.index(min(load))
        load[owners[i]] += listed[i].nbytes
    return list(zip(listed, owners, strict=True))


def read_required(read: Callable[[str, str], Tensor | None], name: str, kind: str, shape: tuple[int, ...]) -> Tensor:
    """What `read` gives; raises CheckpointError when it is missing or of another shape."""
    value = read(name, kind)
    if value is None:
        raise CheckpointError(f"{name}: the checkpoint holds no {kind!r} of it")
    if tuple(value.shape) != shape:
        raise CheckpointError(f"{name}: {kind!r} has shape {tuple(value.shape)} where this rank needs {shape}")
    return value


def read_steps(read: Callable[[str, str], Tensor | None]) -> int:
    """The number of optimizer steps stored."""
    return int(read_required(read, STEP, STEP, ()).item())
