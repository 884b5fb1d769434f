"""Groups as lists a reader checks by eye, and the properties every layout must have."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest

from conf.compose import compose
from conf.derived.topology import AxisName, Topology, topology

# The five layouts of the Switch paper's section 5 on 8 ranks: (tp, ep, etp).
LAYOUTS = {"data": (1, 1, 1), "model": (8, 1, 8), "model+data": (2, 1, 2), "expert+data": (1, 8, 1), "all": (2, 4, 2)}


def test_groups_of_tp2_ep2_on_8_ranks_by_eye():
    t = Topology(world=8, tp=2, ep=2, etp=2)
    assert t.groups("tp") == ((0, 1), (2, 3), (4, 5), (6, 7))
    assert t.groups("dp") == ((0, 2, 4, 6), (1, 3, 5, 7))
    assert t.groups("etp") == t.groups("tp")
    assert t.groups("ep") == ((0, 2), (1, 3), (4, 6), (5, 7))
    assert t.groups("edp") == ((0, 4), (1, 5), (2, 6), (3, 7))
    assert t.groups("world") == (tuple(range(8)),)


def test_expert_parallelism_may_span_tensor_ranks():
    t = Topology(world=4, tp=2, ep=4, etp=1)
    assert t.groups("ep") == ((0, 1, 2, 3),)
    assert t.groups("etp") == ((0,), (1,), (2,), (3,))
    assert (t.dp, t.edp) == (2, 1)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_axis_partitions_the_ranks(layout):
    tp, ep, etp = layout
    t = Topology(world=8, tp=tp, ep=ep, etp=etp)
    for axis in get_args(AxisName):
        groups = t.groups(axis)
        assert sorted(itertools.chain(*groups)) == list(range(8))
        assert {len(group) for group in groups} == {t.size(axis)}
        for rank in range(8):
            assert t.members(axis, rank)[t.position(axis, rank)] == rank


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_two_factorisations_of_the_world(layout):
    tp, ep, etp = layout
    t = Topology(world=8, tp=tp, ep=ep, etp=etp)
    dense = {(t.position("tp", r), t.position("dp", r)) for r in range(8)}
    expert = {(t.position("etp", r), t.position("ep", r), t.position("edp", r)) for r in range(8)}
    assert len(dense) == len(expert) == 8
    assert t.tp * t.dp == t.etp * t.ep * t.edp == 8


@pytest.mark.parametrize(("world", "tp", "ep", "etp"), [(4, 3, 1, 1), (8, 4, 1, 2), (8, 4, 4, 4), (8, 1, 3, 1)])
def test_sizes_that_do_not_fit_are_a_mistake_of_ours(world, tp, ep, etp):
    with pytest.raises(AssertionError):
        Topology(world=world, tp=tp, ep=ep, etp=etp)


def test_the_axes_of_a_run_are_its_ranks_and_its_layout():
    cfg = compose(["launch.nproc=4", "launch.nodes=2", "parallel.tp=2", "parallel.ep=4", "parallel.etp=1"])
    assert topology(cfg) == Topology(world=8, tp=2, ep=4, etp=1)
