"""Where pieces of parameters lie, against a line of elements written out; how they travel; who owns what."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from parallel.engine import fragments as engine_fragments
from parallel.engine.fragments import FlatParameter, collect
from parallel.engine.owners import StateItem, assign_owners
from parallel.layers.sharding import ParamSpec, tag
from parallel.mesh.axes import Axis, Mesh, single_process
from parallel.mesh.groups import init_groups
from tests.harness import run_ranks
from tests.parallel.engine.engine_toy import run_config

SHAPES = {"a": (3,), "b": (2, 5), "c": (1,), "d": (4, 2)}  # 22 elements


def line(axis: Axis, partition_size: int) -> list[FlatParameter]:
    found, offset = [], 0
    for name, shape in SHAPES.items():
        parameter = tag(nn.Parameter(torch.zeros(shape)), ParamSpec(dims=("embed",) * len(shape)))
        found.append(
            FlatParameter(
                name=name, parameter=parameter, group=0, offset=offset, partition_size=partition_size, axis=axis
            )
        )
        offset += parameter.numel()
    return found


@pytest.mark.parametrize("partition_size", [1, 3, 4, 11, 22, 30])
def test_fragments_are_the_line_cut_into_partitions(partition_size):
    elements = [(name, i) for name, shape in SHAPES.items() for i in range(torch.Size(shape).numel())]
    flat = line(single_process().dp, partition_size)
    for rank in range(25):
        wanted = elements[rank * partition_size : (rank + 1) * partition_size]
        found: list = [None] * partition_size
        for where in flat:
            fragment = where.fragment(rank)
            if fragment is not None:
                numbers = range(where.parameter.numel())[fragment.in_parameter]
                found[fragment.in_partition] = [(where.name, i) for i in numbers]
        assert [entry for entry in found if entry is not None] == wanted


def travel(rank: int, world: int) -> None:
    engine_fragments.PIECE_ELEMENTS = 2  # this process only: every fragment takes several pieces
    mesh = init_groups(run_config(zero=1).parallel)
    size = 8
    everything = torch.arange(world * size, dtype=torch.float32)
    for where in line(mesh.dp, size):
        wanted = everything[where.offset : where.offset + where.parameter.numel()].view(where.parameter.shape)
        for owner in range(world):
            whole = collect(where, everything[rank * size : (rank + 1) * size], owner)
            assert (whole is None) == (rank != owner)
            assert whole is None or torch.equal(whole, wanted)


def test_fragments_meet_at_their_owner():
    run_ranks(travel, 3)


def item(name: str, nbytes: int) -> StateItem:
    parameter = tag(nn.Parameter(torch.zeros(1)), ParamSpec(dims=("embed",)))
    return StateItem(name=name, kind="master", parameter=parameter, nbytes=nbytes)


def mesh_of(dp: int) -> Mesh:
    alone = single_process()
    axis = Axis(name="dp", size=dp, rank=0, ranks=tuple(range(dp)), group=None)
    return Mesh(
        world=alone.world, tp=alone.tp, dp=axis, ep=alone.ep, etp=alone.etp, edp=alone.edp, control=alone.control
    )


def test_owners_are_balanced_and_order_is_kept():
    sizes = {"a": 10, "b": 70, "c": 20, "d": 40, "e": 30, "f": 50}
    owned = assign_owners([item(name, size) for name, size in sizes.items()], mesh_of(3))
    assert [entry.name for entry, _ in owned] == list(sizes)
    loads = [sum(entry.nbytes for entry, owner in owned if owner == rank) for rank in range(3)]
    assert loads == [80, 70, 70]
