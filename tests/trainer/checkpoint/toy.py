"""A toy model's state: logical tensors any rank can compute, cut and owned as an engine would do it."""

from __future__ import annotations

import errno
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from parallel.engine.protocol import StateTensor
from parallel.layers.sharding import ParamSpec, Shard, mesh_axis, replica_axis, shard_of, tag, tagged_parameters
from parallel.mesh.axes import Mesh, single_process
from parallel.mesh.collectives import set_fault_hook
from parallel.mesh.groups import init_groups
from tests.settings import parallel_config
from trainer.checkpoint.store import CheckpointStore

LOGICAL = {
    "embedding": ((16, 4), ("vocab", "embed")),
    "norm": ((4,), ("embed",)),
    "router": ((4, 8), ("embed", "router_experts")),
    "query": ((8, 4), ("heads", "embed")),
    "wi": ((8, 4, 12), ("experts", "embed", "expert_ff")),
    "wo": ((8, 12, 4), ("experts", "expert_ff", "embed")),
}
KINDS = ("master", "exp_avg", "exp_avg_sq")
ROWS = (0, 1)  # dims of `wi` that its factored moment keeps


def logical(kind: str, name: str, step: int) -> Tensor:
    """The whole tensor, as a function of its name alone."""
    shape = LOGICAL[name][0]
    seed = 1000 * step + 10 * list(LOGICAL).index(name) + (KINDS + ("row",)).index(kind)
    if kind == "row":
        shape = tuple(shape[d] for d in ROWS)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Toy(nn.Module):
    """Empty local parameters of this rank's shapes."""

    def __init__(self, mesh: Mesh) -> None:
        super().__init__()
        for name, (shape, axes) in LOGICAL.items():
            sizes = [mesh_axis(mesh, axis).size if mesh_axis(mesh, axis) else 1 for axis in axes]
            local = [n // size for n, size in zip(shape, sizes, strict=True)]
            setattr(self, name, tag(nn.Parameter(torch.zeros(local)), ParamSpec(dims=axes)))


def shards_of(mesh: Mesh) -> dict[str, Shard]:
    return {name: shard_of(p, mesh) for name, p, _ in tagged_parameters(Toy(mesh))}


def owned(mesh: Mesh, step: int) -> Iterator[StateTensor]:
    """What this rank owns. Tensor ranks all give their copy of `norm`, as an engine might."""
    shards = shards_of(mesh)
    for i, (name, p, _) in enumerate(tagged_parameters(Toy(mesh))):
        replicas = replica_axis(p, mesh)
        if i % replicas.size != replicas.rank:
            continue
        for kind in KINDS:
            yield StateTensor(name=name, kind=kind, value=logical(kind, name, step)[shards[name].slices])
        if name == "wi":
            cut = tuple(shards[name].slices[d] for d in ROWS)
            yield StateTensor(name=name, kind="row", value=logical("row", name, step)[cut], dims=ROWS)


def groups_for(layout: tuple[int, int, int | None]) -> Mesh:
    return init_groups(parallel_config(*layout, zero=1, backend="auto"))


def save_steps(root: Path, mesh: Mesh, steps: tuple[int, ...], **options: int) -> None:
    """Write whole checkpoints, one after the other."""
    store = CheckpointStore(root, mesh, **{"keep_last": 100, **options})
    for step in steps:
        store.save(step, owned(mesh, step), shards_of(mesh), {"step": step})
        store.wait()
    store.close()


def save_alone(root: Path, *steps: int, **options: int) -> None:
    """The same in one process."""
    save_steps(root, single_process(), steps, **options)


def fault_at(point: str, action: str) -> None:
    """Arm one fault in this rank."""

    def hook(name: str) -> None:
        if name != point:
            return
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(errno.ENOSPC, "No space left on device")

    set_fault_hook(hook)


def quiet() -> None:
    logging.disable(logging.CRITICAL)
