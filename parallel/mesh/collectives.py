"""Every collective of the project: the only file that calls torch.distributed's, so all can be watched and faulted.

All are no-ops along an axis of size 1 and must be called by every rank of the axis, in the same order. Functions that
carry a gradient say what their backward does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from conf.errors import RankDisagreement
from parallel.mesh.axes import Axis

ReduceOp = Literal["sum", "max", "min"]
_OPS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}

_fault_hook: Callable[[str], None] | None = None  # set by tests only
_agreed: set[tuple[object, ...]] = set()  # exchanges whose sizes were compared already, see `all_to_all`


def fault_point(name: str) -> None:
    """Does nothing, except where a test has put a fault (`set_fault_hook`)."""
    if _fault_hook is not None:
        _fault_hook(name)


def set_fault_hook(hook: Callable[[str], None] | None) -> None:
    """For tests: call `hook(name)` at every fault point; None takes it away."""
    global _fault_hook
    _fault_hook = hook


# ---------------------------------------------------------------------------------------------- data, without gradient


def all_reduce(tensor: Tensor, axis: Axis, op: ReduceOp = "sum") -> Tensor:
    """Reduce over the axis in place; returns the tensor, which must be contiguous."""
    if axis.group is not None:
        assert tensor.is_contiguous(), "an all-reduce in place needs a contiguous tensor"
        fault_point(f"all_reduce/{axis.name}")
        dist.all_reduce(tensor, op=_OPS[op], group=axis.group)
    return tensor


def all_gather(tensor: Tensor, axis: Axis) -> Tensor:
    """Every rank's tensor stacked in axis order: [..] -> [axis.size, ..]. Shapes must be equal on all ranks."""
    if axis.group is None:
        return tensor.unsqueeze(0)
    fault_point(f"all_gather/{axis.name}")
    rows = tensor.contiguous().unsqueeze(0)
    gathered = rows.new_empty(axis.size, *tensor.shape)
    dist.all_gather_single(gathered, rows, group=axis.group)
    return gathered


def broadcast(tensor: Tensor, axis: Axis, source: int = 0) -> Tensor:
    """Overwrite the tensor on all ranks by that of axis rank `source`; returns the tensor, which must be contiguous."""
    if axis.group is not None:
        assert tensor.is_contiguous(), "a broadcast in place needs a contiguous tensor"
        fault_point(f"broadcast/{axis.name}")
        dist.broadcast(tensor, src=axis.ranks[source], group=axis.group)
    return tensor


def send(tensor: Tensor, axis: Axis, destination: int) -> None:
    """Send to axis rank `destination`, which calls `receive`; only the two take part. Contiguous, not to oneself."""
    assert tensor.is_contiguous(), "point-to-point transfers need a contiguous tensor"
    assert destination != axis.rank, "a rank does not send to itself"
    fault_point(f"send/{axis.name}")
    dist.send(tensor, dst=axis.ranks[destination], group=axis.group)


def receive(tensor: Tensor, axis: Axis, source: int) -> Tensor:
    """Overwrite the tensor by what axis rank `source` sends; returns it. Shape and dtype must be those sent."""
    assert tensor.is_contiguous(), "point-to-point transfers need a contiguous tensor"
    assert source != axis.rank, "a rank does not receive from itself"
    fault_point(f"receive/{axis.name}")
    dist.recv(tensor, src=axis.ranks[source], group=axis.group)
    return tensor


def barrier(axis: Axis, *, what: str = "barrier", timeout_s: float | None = None) -> None:
    """Wait for all ranks. On gloo (the control axis) a rank that does not come is named.

    Raises RankDisagreement when the timeout passes, on every rank that came.
    """
    if axis.group is None:
        return
    fault_point(f"barrier/{axis.name}")
    if backend_of(axis) != "gloo":
        dist.barrier(group=axis.group)
        return
    timeout = None if timeout_s is None else timedelta(seconds=timeout_s)
    try:
        dist.monitored_barrier(group=axis.group, timeout=timeout, wait_all_ranks=True)
    except RuntimeError as error:
        raise RankDisagreement(f"{what}: not every rank came: {str(error).strip()}") from error


# ------------------------------------------------------------------------------------------------------ small objects


def gather_objects(value: Any, axis: Axis) -> list[Any]:
    """Every rank's value, in axis order, on every rank. Plain JSON types (NaN and infinity too), no pickle."""
    if axis.group is None:
        return [value]
    encoded = json.dumps(value).encode()
    device = _device(axis)
    lengths = all_gather(torch.tensor(len(encoded), device=device), axis).tolist()
    padded = torch.zeros(max(lengths), dtype=torch.uint8)
    padded[: len(encoded)] = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
    rows = all_gather(padded.to(device), axis).cpu()
    return [json.loads(bytes(row[:n].tolist())) for row, n in zip(rows, lengths, strict=True)]


def broadcast_object(value: Any, axis: Axis, source: int = 0) -> Any:
    """The value of axis rank `source`, on every rank; what others pass is ignored. Plain JSON types."""
    if axis.group is None:
        return value
    encoded = json.dumps(value).encode() if axis.rank == source else b""
    device = _device(axis)
    length = int(broadcast(torch.tensor(len(encoded), device=device), axis, source).item())
    data = torch.zeros(length, dtype=torch.uint8)
    if axis.rank == source:
        data[:] = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
    data = broadcast(data.to(device), axis, source).cpu()
    return json.loads(bytes(data.tolist()))


def backend_of(axis: Axis) -> str:
    """`gloo`, `nccl`, `fake`, or `none` along an axis of size 1."""
    return "none" if axis.group is None else str(dist.get_backend(axis.group))


def _device(axis: Axis) -> torch.device:
    on_gpu = backend_of(axis) == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


# ------------------------------------------------------------------------------------------------------ with gradient


def all_to_all(tensor: Tensor, axis: Axis) -> Tensor:
    """Block j of dim 0 goes to axis rank j: row block i of the result came from rank i. Backward: the same exchange.

    dim 0 is cut into axis.size equal blocks. Sizes that differ between ranks would crash one rank and give another
    garbage, so they are compared before data moves, and RankDisagreement is raised on every rank. On gloo this is
    done at every call: eight bytes more, and nothing on CPU to synchronise. On NCCL comparing takes a host sync, so
    it is done once per shape and dtype; shapes there are static, and ranks whose configurations differ do so at
    the first call.
    """
    if axis.group is None:
        return tensor
    assert tensor.shape[0] % axis.size == 0, f"dim 0 of {tuple(tensor.shape)} does not split over {axis.size} ranks"
    _agree_on_sizes(tensor, axis)
    return _AllToAll.apply(tensor, axis)


def all_to_all_rows(tensor: Tensor, sent: Sequence[int], received: Sequence[int], axis: Axis) -> Tensor:
    """The first `sent[0]` rows of dim 0 go to axis rank 0, the next `sent[1]` to rank 1, ..; backward sends them back.

    `received` are the rows that come from each rank: what those ranks have in `sent`, agreed on beforehand.
    """
    if axis.group is None:
        return tensor
    assert tensor.shape[0] == sum(sent), f"{tensor.shape[0]} rows, {sum(sent)} to send"
    return _AllToAllRows.apply(tensor, sent, received, axis)


def copy_to(tensor: Tensor, axis: Axis) -> Tensor:
    """Identity; backward sums the gradient over the axis. Enters a region where ranks use the tensor differently."""
    return tensor if axis.group is None else _CopyTo.apply(tensor, axis)


def reduce_from(tensor: Tensor, axis: Axis) -> Tensor:
    """Sum over the axis, not in place; backward is the identity. Leaves a region of partial sums."""
    return tensor if axis.group is None else _ReduceFrom.apply(tensor, axis)


def scatter_to(tensor: Tensor, axis: Axis) -> Tensor:
    """This rank's block of dim 0 of a tensor all ranks hold: [N, ..] -> [N/size, ..]; backward gathers the blocks."""
    if axis.group is None:
        return tensor
    assert tensor.shape[0] % axis.size == 0, f"dim 0 of {tuple(tensor.shape)} does not split over {axis.size} ranks"
    return _ScatterTo.apply(tensor, axis)


def gather_from(tensor: Tensor, axis: Axis) -> Tensor:
    """All ranks' blocks along dim 0: [N/size, ..] -> [N, ..]; backward takes this rank's block of the gradient.

    Right where every rank goes on with the same computation, so that each already holds the whole gradient.
    """
    return tensor if axis.group is None else _GatherFrom.apply(tensor, axis)


def _exchange(tensor: Tensor, axis: Axis) -> Tensor:
    fault_point(f"all_to_all/{axis.name}")
    source = tensor.contiguous()
    received = torch.empty_like(source)
    dist.all_to_all_single(received, source, group=axis.group)
    return received


def _exchange_rows(tensor: Tensor, sent: Sequence[int], received: Sequence[int], axis: Axis) -> Tensor:
    fault_point(f"all_to_all/{axis.name}")
    arrived = tensor.new_empty(sum(received), *tensor.shape[1:])
    dist.all_to_all_single(arrived, tensor.contiguous(), list(received), list(sent), group=axis.group)
    return arrived


def forget_agreements() -> None:
    """Compare the sizes of every exchange anew: call when groups are taken down.

    A later group may be found at the address of an earlier one, on one rank and not on another; those would then
    compare with ranks that do not.
    """
    _agreed.clear()


def _agree_on_sizes(tensor: Tensor, axis: Axis) -> None:
    backend = backend_of(axis)
    key = (axis.ranks, id(axis.group), tuple(tensor.shape), tensor.dtype)
    if backend == "fake" or (backend != "gloo" and key in _agreed):
        return
    described = f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
    fingerprint = hash((tuple(tensor.shape), tensor.element_size()))  # of integers: the same in every process
    fingerprints = all_gather(torch.tensor(fingerprint, device=_device(axis)), axis).tolist()
    if len(set(fingerprints)) > 1:
        seen = ", ".join(
            f"rank {r}: {text}" for r, text in zip(axis.ranks, gather_objects(described, axis), strict=True)
        )
        raise RankDisagreement(f"all-to-all over {axis.name}: ranks would exchange different sizes: {seen}")
    _agreed.add(key)


def _block(tensor: Tensor, axis: Axis) -> Tensor:
    return tensor.chunk(axis.size, dim=0)[axis.rank].contiguous()


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return _exchange(tensor, axis)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _exchange(grads[0], ctx.axis), None


class _AllToAllRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, sent: Sequence[int], received: Sequence[int], axis: Axis) -> Tensor:
        ctx.travel = received, sent, axis
        return _exchange_rows(tensor, sent, received, axis)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return _exchange_rows(grads[0], *ctx.travel), None, None, None


class _CopyTo(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        # Cloned: autograd may hand the same gradient to other consumers.
        return all_reduce(grads[0].clone(memory_format=torch.contiguous_format), ctx.axis), None


class _ReduceFrom(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, axis: Axis) -> Tensor:
        return all_reduce(tensor.clone(memory_format=torch.contiguous_format), axis)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _ScatterTo(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return _block(tensor, axis)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return all_gather(grads[0], ctx.axis).flatten(0, 1), None


class _GatherFrom(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return all_gather(tensor, axis).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _block(grads[0], ctx.axis), None
