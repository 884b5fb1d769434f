"""Tags, shards and casts: rectangles of all ranks tile the logical tensor, and nothing but the tag decides them."""

from __future__ import annotations

import itertools
import math
from typing import get_args

import pytest
import torch
from torch import nn

from conf.derived.topology import AxisName, Topology
from parallel.layers.sharding import (
    ParamSpec,
    cast_module,
    mesh_axis,
    replica_axis,
    shard_of,
    sharded_axes,
    spec_of,
    tag,
    tagged_parameters,
)
from parallel.mesh.axes import Axis, Mesh, single_process


def groups_at(rank: int, *, world: int, tp: int = 1, ep: int = 1, etp: int | None = None) -> Mesh:
    """Groups by arithmetic alone, for any rank of any world."""
    topology = Topology(world=world, tp=tp, ep=ep, etp=tp if etp is None else etp)

    def axis(name) -> Axis:
        ranks = topology.members(name, rank)
        return Axis(name=name, size=len(ranks), rank=ranks.index(rank), ranks=ranks, group=None)

    return Mesh(**{name: axis(name) for name in get_args(AxisName)}, control=axis("world"))


def parameter(shape: tuple[int, ...], **spec) -> nn.Parameter:
    return tag(nn.Parameter(torch.empty(shape)), ParamSpec(**spec))


EXPERT = {"dims": ("experts", "embed", "expert_ff")}


@pytest.mark.parametrize(
    "sizes", [{"world": 8, "tp": 2, "ep": 2}, {"world": 8, "tp": 2, "ep": 4, "etp": 1}, {"world": 4, "ep": 4}]
)
@pytest.mark.parametrize("axes", [EXPERT["dims"], ("vocab", "embed"), ("embed", "heads"), ("embed",)])
def test_shards_tile_the_logical_tensor(sizes, axes):
    whole = tuple({"experts": 8, "vocab": 16, "heads": 4, "expert_ff": 4}.get(axis, 3) for axis in axes)
    counts = torch.zeros(whole, dtype=torch.int64)
    for rank in range(sizes["world"]):
        mesh = groups_at(rank, **sizes)
        cutters = [mesh_axis(mesh, name) for name in axes]
        p = parameter(tuple(n // (axis.size if axis else 1) for n, axis in zip(whole, cutters, strict=True)), dims=axes)
        shard = shard_of(p, mesh)
        assert (shard.global_shape, shard.local_shape) == (whole, tuple(p.shape))
        counts[shard.slices] += 1
        cut = {axis.name: axis.size for axis in sharded_axes(p, mesh)}
        copies = sizes["world"] // math.prod(cut.values())
        if "tp" in cut or "experts" in axes:  # cut along every axis that is not the replicas'
            assert replica_axis(p, mesh).size == copies
    assert counts.unique().tolist() == [copies]  # every element is held, and equally often


def test_by_eye_at_tp2_ep2_on_4_ranks():
    p = parameter((2, 3, 4), **EXPERT)  # 4 experts over ep 2, 8 columns over etp 2
    offsets = [shard_of(p, groups_at(rank, world=4, tp=2, ep=2)).offsets for rank in range(4)]
    assert offsets == [(0, 0, 0), (0, 0, 4), (2, 0, 0), (2, 0, 4)]
    mesh = groups_at(3, world=4, tp=2, ep=2)
    assert [axis.name for axis in sharded_axes(p, mesh)] == ["ep", "etp"]
    assert replica_axis(p, mesh).name == "edp"
    dense = parameter((3,), dims=("embed",))
    assert sharded_axes(dense, mesh) == ()
    assert replica_axis(dense, mesh).ranks == (1, 3)


def test_one_process_holds_everything():
    shard = shard_of(parameter((2, 3, 4), **EXPERT), single_process())
    assert shard.global_shape == shard.local_shape == (2, 3, 4)
    assert shard.offsets == (0, 0, 0)


def test_a_tag_must_fit_and_must_be_there():
    with pytest.raises(AssertionError, match="embed"):
        tag(nn.Parameter(torch.empty(2, 3)), ParamSpec(dims=("embed",)))
    with pytest.raises(AssertionError, match="no ParamSpec"):
        spec_of(nn.Parameter(torch.empty(2)))


def test_tied_parameters_come_once():
    module = nn.Module()
    module.a = nn.Linear(2, 3, bias=False)
    module.b = nn.Linear(2, 3, bias=False)
    module.b.weight = module.a.weight
    tag(module.a.weight, ParamSpec(dims=("ff", "embed")))
    assert [name for name, _, _ in tagged_parameters(module)] == ["a.weight"]


@pytest.mark.parametrize(
    ("dtype", "router", "dense"),
    [
        (torch.bfloat16, torch.float32, torch.bfloat16),
        (torch.float32, torch.float32, torch.float32),
        (torch.float64, torch.float64, torch.float64),
    ],
)
def test_casting_keeps_what_must_stay_wide(dtype, router, dense):
    module = nn.Module()
    module.router = parameter((2, 3), dims=("embed", "router_experts"), keep_fp32=True)
    module.dense = parameter((2, 3), dims=("ff", "embed"))
    cast_module(module, dtype)
    assert (module.router.dtype, module.dense.dtype) == (router, dense)
    assert spec_of(module.router).keep_fp32


def test_every_combination_of_sizes_has_one_axis_per_rule():
    for tp, ep in itertools.product((1, 2, 4), (1, 2)):
        mesh = groups_at(0, world=8, tp=tp, ep=ep)
        assert mesh_axis(mesh, "vocab").size == tp
        assert mesh_axis(mesh, "experts").size == ep
        assert mesh_axis(mesh, "embed") is None
