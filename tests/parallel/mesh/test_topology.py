"""Groups as lists a reader checks by eye, and the properties every layout must have."""

from __future__ import annotations

import itertools

import pytest

from conf.errors import ConfigError
from parallel.mesh.topology import AXIS_NAMES, make_topology

# The five layouts of the Switch paper's section 5 on 8 ranks: (tp, ep, etp).
LAYOUTS = {"data": (1, 1, 1), "model": (8, 1, 8), "model+data": (2, 1, 2), "expert+data": (1, 8, 1), "all": (2, 4, 2)}


def test_groups_of_tp2_ep2_on_8_ranks_by_eye():
    t = make_topology(world=8, tp=2, ep=2)
    assert t.groups("tp") == ((0, 1), (2, 3), (4, 5), (6, 7))
    assert t.groups("dp") == ((0, 2, 4, 6), (1, 3, 5, 7))
    assert t.groups("etp") == t.groups("tp")
    assert t.groups("ep") == ((0, 2), (1, 3), (4, 6), (5, 7))
    assert t.groups("edp") == ((0, 4), (1, 5), (2, 6), (3, 7))
    assert t.groups("world") == (tuple(range(8)),)


def test_expert_parallelism_may_span_tensor_ranks():
    t = make_topology(world=4, tp=2, ep=4, etp=1)
    assert t.groups("ep") == ((0, 1, 2, 3),)
    assert t.groups("etp") == ((0,), (1,), (2,), (3,))
    assert (t.dp, t.edp) == (2, 1)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_axis_partitions_the_ranks(layout):
    tp, ep, etp = layout
    t = make_topology(world=8, tp=tp, ep=ep, etp=etp)
    for axis in AXIS_NAMES:
        groups = t.groups(axis)
        assert sorted(itertools.chain(*groups)) == list(range(8))
        assert {len(group) for group in groups} == {t.size(axis)}
        for rank in range(8):
            assert t.members(axis, rank)[t.position(axis, rank)] == rank


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_two_factorisations_of_the_world(layout):
    tp, ep, etp = layout
    t = make_topology(world=8, tp=tp, ep=ep, etp=etp)
    dense = {(t.position("tp", r), t.position("dp", r)) for r in range(8)}
    expert = {(t.position("etp", r), t.position("ep", r), t.position("edp", r)) for r in range(8)}
    assert len(dense) == len(expert) == 8
    assert t.tp * t.dp == t.etp * t.ep * t.edp == 8


@pytest.mark.parametrize(
    ("sizes", "field"),
    [
        ({"world": 4, "tp": 3}, "parallel.tp"),
        ({"world": 4, "tp": 0}, "parallel.tp"),
        ({"world": 8, "tp": 4, "etp": 2}, "parallel.etp"),
        ({"world": 8, "tp": 4, "ep": 4}, "parallel.ep"),
        ({"world": 8, "ep": 3}, "parallel.ep"),
    ],
)
def test_sizes_that_do_not_fit_name_the_field(sizes, field):
    with pytest.raises(ConfigError) as caught:
        make_topology(**sizes)
    assert caught.value.field == field
    assert caught.value.hint
