"""Which parameters share an optimizer setting, and who counts them. All follows from the tags of `layers.sharding`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from parallel.layers.sharding import mesh_axis, sharded_axes, spec_of, tagged_parameters
from parallel.mesh.axes import Axis, Mesh


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimGroup:
    """Parameters of one dtype, reduced over one set of ranks, with one weight decay; in model order."""

    dtype: torch.dtype
    is_expert: bool
    weight_decay: float
    params: tuple[nn.Parameter, ...]


def optim_groups(module: nn.Module, weight_decay: float) -> list[OptimGroup]:
    """Trainable parameters by (dtype, expert or dense, decayed or not), in the order in which the model names them.

    One dtype a group because ZeRO flattens a group into one tensor; experts apart because they are reduced over other
    ranks; `decay=False` (norms) apart because weight decay is an option of a group.
    """
    found: dict[tuple[torch.dtype, bool, float], list[nn.Parameter]] = {}
    for _, parameter, spec in tagged_parameters(module):
        if parameter.requires_grad:
            key = (parameter.dtype, spec.is_expert, weight_decay if spec.decay else 0.0)
            found.setdefault(key, []).append(parameter)
    return [
        OptimGroup(dtype=dtype, is_expert=is_expert, weight_decay=decay, params=tuple(params))
        for (dtype, is_expert, decay), params in found.items()
    ]


def replica_axes(parameter: Tensor, mesh: Mesh) -> tuple[Axis, ...]:
    """Axes along which ranks hold copies of this parameter's local shard: its data axis, and tp where it is not cut."""
    spec, cut = spec_of(parameter), {axis.name for axis in sharded_axes(parameter, mesh)}
    data, tensor = (mesh.edp, mesh.etp) if spec.is_expert else (mesh.dp, mesh.tp)
    return (data,) if tensor.name in cut else (data, tensor)


def is_counted(parameter: Tensor, mesh: Mesh) -> bool:
    """Whether this rank's copy of a shard is the one that counts in a sum over the world (norms)."""
    return all(axis.rank == 0 for axis in replica_axes(parameter, mesh))


def is_first_tensor_copy(parameter: Tensor, mesh: Mesh, dims: tuple[int, ...] | None = None) -> bool:
    """Whether, among the tensor ranks that hold the same values, this rank is the first.

    `dims` are the dims of the parameter that the values keep (a factored moment lacks one); None: all.
    """
    spec = spec_of(parameter)
    kept = range(parameter.dim()) if dims is None else dims
    tensor = mesh.etp if spec.is_expert else mesh.tp
    axes = (mesh_axis(mesh, spec.dims[dim]) for dim in kept)
    return tensor.rank == 0 or any(axis is not None and axis.name == tensor.name for axis in axes)
