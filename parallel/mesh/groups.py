"""Builds the process groups with Megatron-Core and reads them out, once, into the frozen `Mesh`.

No other file asks Megatron-Core or torch for a group. Backends: gloo, nccl and `fake`, on which a cluster of any
size is planned in one process.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from conf.derived.topology import AxisName, Topology
from conf.errors import RankLost, SetupError
from conf.schema import ParallelConfig
from parallel.mesh.axes import Axis, Mesh, single_process
from parallel.mesh.collectives import forget_agreements

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


logger = logging.getLogger(__name__)
_SAY_AFTER_S = 30.0


def init_groups(
    parallel: ParallelConfig,
    *,
    backend: str | None = None,
    world: int | None = None,
    rank: int | None = None,
) -> Mesh:
    """The groups of this rank.

    Takes the default process group that exists, or creates one from the environment that torchrun and deepspeed set.
    Without either, the run is a single process and no process group is made. `backend` overrides the configured one;
    `fake` needs `world` and `rank` given here. A second call replaces the groups of the first. Raises SetupError when
    the backend cannot be had.
    """
    wanted = backend or (None if parallel.backend == "auto" else parallel.backend)
    if not dist.is_initialized():
        if wanted == "fake":
            _init_fake(world, rank)
        elif "WORLD_SIZE" in os.environ and "RANK" in os.environ:
            _init_default(wanted, parallel.timeout_s)
        else:
            assert parallel.tp == parallel.ep == 1, f"tp {parallel.tp} x ep {parallel.ep} in a single process"
            return single_process()
    found = str(dist.get_backend())
    if wanted is not None and wanted != found:
        raise SetupError(f"process groups already run on {found}, but {wanted} was asked for")
    topology = Topology(world=dist.get_world_size(), tp=parallel.tp, ep=parallel.ep, etp=parallel.etp)
    return _build(topology, dist.get_rank(), found, parallel.timeout_s)


@contextmanager
def meeting(parallel: ParallelConfig, *, rank: int, world: int, store: str) -> Iterator[Mesh]:
    """The groups of `world` ranks that meet in a new file `store` instead of at an address; taken down at the end.

    For processes that meet more than once. Raises as `init_groups`.
    """
    wanted, where = None if parallel.backend == "auto" else parallel.backend, f"file://{os.path.abspath(store)}"
    _init_default(wanted, parallel.timeout_s, init_method=where, rank=rank, world_size=world)
    try:
        yield init_groups(parallel)
    finally:
        destroy_groups()


def new_control_axis(mesh: Mesh, name: str, *, timeout_s: float) -> Axis:
    """Collective: all ranks on a gloo group of their own, for a thread that must not disturb the others' order."""
    control = mesh.control
    group = None
    if control.group is not None:
        group = cast("ProcessGroup", dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s)))
    return Axis(name=name, size=control.size, rank=control.rank, ranks=control.ranks, group=group)


def destroy_groups() -> None:
    """Take every group down. Call before a rank exits: without it gloo's threads often abort a finished process."""
    if not dist.is_initialized():
        return
    # Only a process that has built groups has Megatron-Core loaded; importing it takes seconds.
    parallel_state = sys.modules.get("megatron.core.parallel_state")
    if parallel_state is not None:
        parallel_state.destroy_model_parallel()
    dist.destroy_process_group()
    forget_agreements()


def _init_fake(world: int | None, rank: int | None) -> None:
    assert world is not None, "the fake backend needs the world size"
    assert rank is not None, "the fake backend needs the rank to plan for"
    from torch.testing._internal.distributed.fake_pg import FakeStore  # registers the backend

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)


def _init_default(wanted: str | None, timeout_s: float, **where: Any) -> None:
    backend = wanted or ("nccl" if torch.cuda.is_available() else "gloo")
    if backend == "nccl":
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        if local_rank >= torch.cuda.device_count():
            count = torch.cuda.device_count()
            raise SetupError(
                f"parallel.backend=nccl needs a GPU per local rank; local rank {local_rank} finds {count} GPUs; try "
                + (f"launch.nproc={count} or " if count else "")
                + "parallel.backend=gloo"
            )
        torch.cuda.set_device(local_rank)
    if backend == "gloo":
        _check_interfaces()
    timeout = timedelta(seconds=timeout_s)
    if where:
        dist.init_process_group(backend, timeout=timeout, **where)
    elif os.environ["WORLD_SIZE"] == "1":  # needs no meeting, so no address can be wrong
        dist.init_process_group(backend, timeout=timeout, store=HashStore(), rank=0, world_size=1)
    else:
        with _patience(timeout_s):
            dist.init_process_group(backend, timeout=timeout)


def _check_interfaces() -> None:
    """Raise SetupError for a network interface of GLOO_SOCKET_IFNAME that is not here."""
    known = [name for _, name in socket.if_nameindex()]
    for name in filter(None, os.environ.get("GLOO_SOCKET_IFNAME", "").split(",")):
        if name not in known:
            text = f"GLOO_SOCKET_IFNAME: got {name!r}; needs a network interface of this machine: {', '.join(known)}"
            raise SetupError(f"{text}; try unset GLOO_SOCKET_IFNAME")


@contextmanager
def _patience(timeout_s: float) -> Iterator[None]:
    """Say where ranks meet when it takes long, and what was awaited when they have not met in time."""
    rank, world, host, port = map(os.environ.get, ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
    text = f"rank {rank} waits for all {world} ranks to meet at {host}:{port}"
    waiting = threading.Timer(_SAY_AFTER_S, logger.warning, (text,))
    waiting.daemon = True
    waiting.start()
    try:
        yield
    except dist.DistError as error:
        raise RankLost(
            f"the {world} ranks did not meet at {host}:{port} (MASTER_ADDR:MASTER_PORT) within {timeout_s:g} s "
            f"(parallel.timeout_s): {str(error).splitlines()[0]}"
        ) from error
    finally:
        waiting.cancel()


def _build(topology: Topology, rank: int, backend: str, timeout_s: float) -> Mesh:
    from megatron.core import parallel_state  # costs seconds, and a single process never needs it

    if parallel_state.is_initialized():
        parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=topology.tp,
        expert_model_parallel_size=topology.ep,
        expert_tensor_parallel_size=topology.etp,
        distributed_timeout_minutes=timeout_s / 60,  # pyright: ignore[reportArgumentType]  # goes into a timedelta
        create_gloo_process_groups=False,
    )
    world_group = dist.group.WORLD
    assert world_group is not None
    control_group = world_group
    if backend != "fake" and topology.world > 1:
        # Its own group on gloo too: a decision or a barrier never queues behind, or mixes with, the step's data.
        control_group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
    return Mesh(
        world=_axis("world", topology, rank, world_group),
        tp=_axis("tp", topology, rank, parallel_state.get_tensor_model_parallel_group()),
        dp=_axis("dp", topology, rank, parallel_state.get_data_parallel_group()),
        ep=_axis("ep", topology, rank, parallel_state.get_expert_model_parallel_group()),
        etp=_axis("etp", topology, rank, parallel_state.get_expert_tensor_parallel_group()),
        edp=_axis("edp", topology, rank, parallel_state.get_expert_data_parallel_group()),
        control=_axis("world", topology, rank, control_group, name="control"),
    )


def _axis(axis: AxisName, topology: Topology, rank: int, found: object, name: str | None = None) -> Axis:
    """An axis as this rank sees it: ranks are Megatron-Core's, checked against our own arithmetic."""
    group = cast("ProcessGroup", found)  # torch and Megatron-Core annotate loosely
    ranks = tuple(dist.get_process_group_ranks(group))
    expected = topology.members(axis, rank)
    assert ranks == expected, f"{axis}: Megatron-Core made {ranks}, the topology says {expected}"
    return Axis(
        name=name or axis, size=len(ranks), rank=ranks.index(rank), ranks=ranks, group=group if len(ranks) > 1 else None
    )
