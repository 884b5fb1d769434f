"""Tells DeepSpeed which ranks share what: the adapter it asks for groups, its registry of expert groups, its marks."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import nn

from parallel.layers.sharding import sharded_axes, tagged_parameters
from parallel.mesh.axes import Axis, Mesh

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.distributed import ProcessGroup


class ProcessGroups:
    """A real process group for every axis, also for axes of size 1, which DeepSpeed cannot do without."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self._alone: ProcessGroup | None = None

    def of(self, axis: Axis) -> ProcessGroup:
        """The axis' group, or this rank's group of its own."""
        if axis.group is not None:
            return axis.group
        if self._alone is None:
            # Only members call: making one such group per rank must not cost a collective of the world each.
            alone = dist.new_group([dist.get_rank()], use_local_synchronization=True)
            assert isinstance(alone, dist.ProcessGroup)
            self._alone = alone
        return self._alone


class MpuAdapter:
    """What DeepSpeed calls an `mpu`: the names it asks, answered from `Mesh`."""

    def __init__(self, groups: ProcessGroups) -> None:
        self._tp, self._dp = groups.mesh.tp, groups.mesh.dp
        self._tp_group, self._dp_group = groups.of(self._tp), groups.of(self._dp)

    def get_model_parallel_rank(self) -> int:
        """Rank along tp."""
        return self._tp.rank

    def get_model_parallel_world_size(self) -> int:
        """Size of tp."""
        return self._tp.size

    def get_model_parallel_group(self) -> ProcessGroup:
        """Group of tp."""
        return self._tp_group

    get_tensor_model_parallel_rank = get_model_parallel_rank
    get_tensor_model_parallel_world_size = get_model_parallel_world_size
    get_tensor_model_parallel_group = get_model_parallel_group

    def get_data_parallel_rank(self) -> int:
        """Rank along dp."""
        return self._dp.rank

    def get_data_parallel_world_size(self) -> int:
        """Size of dp."""
        return self._dp.size

    def get_data_parallel_group(self) -> ProcessGroup:
        """Group of dp."""
        return self._dp_group

    def get_data_parallel_group_ranks(self) -> list[int]:
        """Global ranks of dp."""
        return list(self._dp.ranks)


def expert_group_name(mesh: Mesh) -> str:
    """The key under which DeepSpeed finds the expert groups; it parses the number out of it."""
    return f"ep_size_{mesh.ep.size}"


def register_expert_groups(groups: ProcessGroups) -> None:
    """Put ep and edp into DeepSpeed's registry, in place of those it would make itself in its own rank order."""
    from deepspeed.utils import groups as registry

    name, mesh = expert_group_name(groups.mesh), groups.mesh
    registry._EXPERT_PARALLEL_GROUP[name] = groups.of(mesh.ep)
    registry._EXPERT_PARALLEL_GROUP_RANKS[name] = list(mesh.ep.ranks)
    registry._EXPERT_DATA_PARALLEL_GROUP[name] = groups.of(mesh.edp)
    registry._EXPERT_DATA_PARALLEL_GROUP_RANKS[name] = list(mesh.edp.ranks)


def release_groups() -> None:
    """Make DeepSpeed forget every process group, before they are destroyed and others made in the same process.

    A process that has not loaded DeepSpeed has nothing to forget.
    """
    if "deepspeed.comm.comm" not in sys.modules:
        return
    from deepspeed.comm import comm
    from deepspeed.utils import groups as registry

    registry._release_process_group_references()
    comm.cdb = None  # its backend holds the world it was made for


def mark_parameters(module: nn.Module, mesh: Mesh) -> bool:
    """Set the attributes by which DeepSpeed knows expert and tensor-parallel parameters; whether there are experts.

    `tensor_model_parallel` decides which tensor ranks count a gradient in the norm: all where each holds something
    else, the first alone where they hold copies. Whole experts (etp = 1) differ between tensor ranks.
    """
    has_experts = False
    for _, parameter, spec in tagged_parameters(module):
        marks: dict[str, Any] = {"tensor_model_parallel": any(a.name != "ep" for a in sharded_axes(parameter, mesh))}
        if spec.is_expert:
            has_experts = True
            marks |= {"allreduce": False, "group_name": expert_group_name(mesh)}
            marks["tensor_model_parallel"] |= mesh.etp.size == 1
        for name, value in marks.items():
            setattr(parameter, name, value)
    return has_experts


@contextmanager
def expert_marker(module: nn.Module, num_experts: int) -> Iterator[None]:
    """While DeepSpeed builds its engine, `module` has one child without parameters that it takes for an expert layer.

    The engine decides by `isinstance(child, deepspeed.moe.layer.MoE)` and only while it is built. The child leaves no
    trace: names of parameters and modules are as before.
    """
    from deepspeed.moe.layer import MoE

    class Marker(MoE):
        def __init__(self) -> None:
            nn.Module.__init__(self)  # MoE's own would build a gate and experts
            self.num_experts = num_experts

        def set_deepspeed_parallelism(self, use_data_before_expert_parallel_: bool = False) -> None:
            """The groups are registered already."""

    module.add_module("deepspeed_expert_marker", Marker())
    try:
        yield
    finally:
        del module.deepspeed_expert_marker
