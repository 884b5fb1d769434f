"""Megatron-Core's groups equal the topology's, on the fake backend at any size and on gloo for real."""

from __future__ import annotations

import os
import socket
import sys
import time
from functools import partial
from typing import get_args

import pytest
import torch

from conf.derived.topology import AxisName, Topology
from conf.errors import SetupError
from parallel.mesh.collectives import all_reduce
from parallel.mesh.groups import destroy_groups, init_groups
from tests import settings
from tests.harness import run_ranks

LAYOUTS = [(1, 1, None), (2, 1, None), (4, 1, None), (1, 4, None), (2, 2, None), (1, 2, None), (2, 4, 1), (2, 2, 1)]

parallel_config = partial(settings.parallel_config, backend="auto")


def compare_on_fake(rank: int, world: int, layouts: list, size: int) -> int:
    compared = 0
    for tp, ep, etp in layouts:
        topology = Topology(world=size, tp=tp, ep=ep, etp=tp if etp is None else etp)
        for r in range(size):
            mesh = init_groups(parallel_config(tp, ep, etp), backend="fake", world=size, rank=r)
            for name in get_args(AxisName):
                axis = getattr(mesh, name)
                assert axis.ranks == topology.members(name, r)
                assert (axis.size, axis.rank) == (topology.size(name), topology.position(name, r))
                assert (axis.group is None) == (axis.size == 1)
                compared += 1
            assert mesh.is_main == (r == 0)
            destroy_groups()
    return compared


def time_of_2048_ranks(rank: int, world: int) -> float:
    from megatron.core import parallel_state  # noqa: F401  the import is not what is measured

    times = []
    for r in (0, 1234):
        began = time.process_time()  # other tests share the cores
        mesh = init_groups(parallel_config(tp=8, ep=64), backend="fake", world=2048, rank=r)
        times.append(time.process_time() - began)
        assert (mesh.dp.size, mesh.edp.size, mesh.world.rank) == (256, 4, r)
        destroy_groups()
    return min(times)


def sums_on_gloo(rank: int, world: int) -> dict[str, float]:
    mesh = init_groups(parallel_config(tp=2, ep=2))
    sums = {}
    for name in ("tp", "dp", "ep", "etp", "edp", "world", "control"):
        axis = getattr(mesh, name)
        x = torch.tensor([2.0**rank])
        assert all_reduce(x, axis).item() == sum(2.0**r for r in axis.ranks)
        sums[name] = x.item()
    destroy_groups()
    assert not torch.distributed.is_initialized()
    return sums


def build_twice(rank: int, world: int) -> tuple[int, int]:
    first = init_groups(parallel_config(tp=2))
    second = init_groups(parallel_config(ep=2))
    return first.tp.size, second.tp.size


def leave_without_megatron(rank: int, world: int) -> bool:
    for name in [name for name in sys.modules if name.partition(".")[0] == "megatron"]:
        del sys.modules[name]  # the harness has loaded it
    destroy_groups()
    return "megatron" in sys.modules or torch.distributed.is_initialized()


def from_the_environment(rank: int, world: int, port: int) -> tuple[int, float]:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))  # RANK and WORLD_SIZE: the harness sets them
    mesh = init_groups(parallel_config(ep=2))
    total = all_reduce(torch.tensor([float(rank + 1)]), mesh.ep).item()
    assert mesh.control.group is not mesh.world.group
    destroy_groups()
    return mesh.ep.rank, total


def misuse(rank: int, world: int) -> str:
    with pytest.raises(SetupError) as caught:
        init_groups(parallel_config(backend="nccl"))
    with pytest.raises(AssertionError, match="tp=3"):
        init_groups(parallel_config(tp=3))
    return str(caught.value)


@pytest.mark.parametrize("size", [4, 8])
def test_topology_is_what_megatron_builds(size):
    layouts = [*LAYOUTS, (8, 1, None), (2, 8, 1)] if size == 8 else LAYOUTS
    assert run_ranks(compare_on_fake, 1, layouts, size, backend=None) == [len(layouts) * size * len(get_args(AxisName))]


def test_2048_ranks_are_planned_in_one_process_within_a_second():
    (seconds,) = run_ranks(time_of_2048_ranks, 1, backend=None)
    assert seconds < 1


def test_every_group_moves_data_on_gloo():
    values = run_ranks(sums_on_gloo, 4)
    assert [v["tp"] for v in values] == [3, 3, 12, 12]
    assert [v["dp"] for v in values] == [5, 10, 5, 10]
    assert [v["world"] for v in values] == [15] * 4


def test_the_default_group_comes_from_the_launchers_environment():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert run_ranks(from_the_environment, 2, port, backend=None) == [(0, 3.0), (1, 3.0)]


def test_taking_groups_down_does_not_load_megatron():
    assert run_ranks(leave_without_megatron, 1) == [False]


def test_a_second_layout_replaces_the_first():
    assert run_ranks(build_twice, 2) == [(2, 1), (2, 1)]


def test_wrong_sizes_and_backends_are_refused():
    assert all("nccl" in text for text in run_ranks(misuse, 2))


def test_without_a_launcher_there_is_one_process_and_no_group(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    mesh = init_groups(parallel_config())
    assert mesh.world.size == 1
    assert mesh.control.group is None
    assert not torch.distributed.is_initialized()
    with pytest.raises(AssertionError, match="in a single process"):
        init_groups(parallel_config(ep=2))


def test_an_interface_that_is_not_here_is_told_before_gloo_looks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo,ib7")
    with pytest.raises(SetupError, match=r"GLOO_SOCKET_IFNAME: got 'ib7'; needs a network interface .*: .*lo.*; try"):
        init_groups(parallel_config(1, 1, 1))
