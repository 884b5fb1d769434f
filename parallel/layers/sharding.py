"""Logical names of the dims of parameters and the one table that maps them to mesh axes.

Sharding, initialisation, checkpoints, gradient norms and the engine's parameter groups all read the tag that
`tag` puts on a parameter; nothing guesses from names or shapes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from parallel.mesh.axes import Axis, Mesh

LogicalDim = Literal["vocab", "embed", "heads", "ff", "experts", "expert_ff", "buckets", "router_experts"]

# Logical dim -> mesh axis that shards it; a dim that is not here is whole on every rank.
RULES: dict[str, Literal["tp", "ep", "etp"]] = {
    "vocab": "tp",
    "heads": "tp",
    "ff": "tp",
    "experts": "ep",
    "expert_ff": "etp",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ParamSpec:
    """What a parameter is, independent of any layout."""

    dims: tuple[LogicalDim, ...]  # one per dim
    keep_fp32: bool = False  # stays fp32 in mixed precision (router and norm weights)
    decay: bool = True  # takes weight decay
    fan_in: int | None = None  # of the initialisation; None: special case of the initialiser
    init: str = "fan_in"  # name of the initialisation rule, see model.init

    @property
    def is_expert(self) -> bool:
        """Whether the parameter belongs to an expert (reduced over edp instead of dp)."""
        return "experts" in self.dims


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """This rank's rectangle of a logical tensor."""

    global_shape: tuple[int, ...]
    offsets: tuple[int, ...]
    local_shape: tuple[int, ...]

    @property
    def slices(self) -> tuple[slice, ...]:
        """Index of the shard in the logical tensor."""
        return tuple(slice(o, o + n) for o, n in zip(self.offsets, self.local_shape, strict=True))


def tag(parameter: nn.Parameter, spec: ParamSpec) -> nn.Parameter:
    """Attach `spec`; returns the parameter. Raises if names and dims differ in number."""
    assert len(spec.dims) == parameter.dim(), f"{spec.dims} for a tensor of shape {tuple(parameter.shape)}"
    parameter.pointsman = spec  # type: ignore[attr-defined]
    return parameter


def spec_of(parameter: Tensor) -> ParamSpec:
    """The tag of a parameter; every parameter of a model has one."""
    spec = getattr(parameter, "pointsman", None)
    assert isinstance(spec, ParamSpec), f"parameter of shape {tuple(parameter.shape)} carries no ParamSpec"
    return spec


def mesh_axis(mesh: Mesh, logical: LogicalDim) -> Axis | None:
    """The mesh axis that shards a logical dim, or None."""
    return {"tp": mesh.tp, "ep": mesh.ep, "etp": mesh.etp}[RULES[logical]] if logical in RULES else None


def shard_of(parameter: Tensor, mesh: Mesh) -> Shard:
    """Where this rank's local parameter lies in its logical tensor."""
    sizes, offsets = [], []
    for logical, n in zip(spec_of(parameter).dims, parameter.shape, strict=True):
        axis = mesh_axis(mesh, logical)
        sizes.append(n * axis.size if axis else n)
        offsets.append(n * axis.rank if axis else 0)
    return Shard(global_shape=tuple(sizes), offsets=tuple(offsets), local_shape=tuple(parameter.shape))


def sharded_axes(parameter: Tensor, mesh: Mesh) -> tuple[Axis, ...]:
    """Mesh axes (of size above 1) over which the parameter is cut: sums over the logical tensor reduce over these."""
    axes = (mesh_axis(mesh, logical) for logical in spec_of(parameter).dims)
    return tuple(axis for axis in axes if axis is not None and axis.size > 1)


def replica_axis(parameter: Tensor, mesh: Mesh) -> Axis:
    """The axis over which ranks hold copies whose gradients are averaged: dp, or edp for experts."""
    return mesh.edp if spec_of(parameter).is_expert else mesh.dp


def tagged_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter, ParamSpec]]:
    """Name, parameter and tag of every parameter, tied ones once."""
    for name, parameter in module.named_parameters():
        yield name, parameter, spec_of(parameter)


def cast_module(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast compute weights to `dtype` in place, leaving `keep_fp32` parameters in fp32 (or wider, for fp64)."""
    for _, parameter, spec in tagged_parameters(module):
        keep = spec.keep_fp32 and dtype in (torch.bfloat16, torch.float16)
        parameter.data = parameter.data.to(torch.float32 if keep else dtype)
