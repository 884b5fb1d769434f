"""Each collective against the numbers of all ranks written out, its gradient, and faults it must turn into errors."""

from __future__ import annotations

import math
import time

import pytest
import torch
import torch.distributed as dist

from conf.errors import RankDisagreement
from parallel.mesh import collectives as c
from parallel.mesh.axes import Axis, single_process
from parallel.mesh.groups import destroy_groups
from tests.harness import run_ranks


def world_axis() -> Axis:
    ranks = tuple(range(dist.get_world_size()))
    return Axis(name="world", size=len(ranks), rank=dist.get_rank(), ranks=ranks, group=dist.group.WORLD)


def whole(rank: int, rows: int = 6) -> torch.Tensor:
    return torch.arange(rows * 2.0).view(rows, 2) + 100 * rank


def data_movers(rank: int, world: int) -> None:
    axis = world_axis()
    everyone = [whole(r) for r in range(world)]
    assert torch.equal(c.all_reduce(whole(rank), axis), sum(everyone))
    assert torch.equal(c.all_reduce(whole(rank), axis, "max"), everyone[-1])
    assert torch.equal(c.all_reduce(whole(rank), axis, "min"), everyone[0])
    assert torch.equal(c.all_gather(whole(rank), axis), torch.stack(everyone))
    assert torch.equal(c.all_gather(torch.tensor(rank), axis), torch.arange(world))
    assert torch.equal(c.broadcast(whole(rank), axis, 1), everyone[1])
    blocks = 6 // world
    expected = torch.cat([x[rank * blocks : (rank + 1) * blocks] for x in everyone])
    assert torch.equal(c.all_to_all(whole(rank), axis), expected)
    assert torch.equal(c.all_to_all(c.all_to_all(whole(rank), axis), axis), whole(rank))
    assert torch.equal(c.all_to_all(whole(rank).bfloat16(), axis), torch.cat(list(expected.split(1))).bfloat16())
    for dtype in (torch.bfloat16, torch.float64, torch.int64, torch.int32):
        assert c.all_reduce(torch.ones(2, dtype=dtype), axis).tolist() == [world, world]
    c.barrier(axis)


def objects(rank: int, world: int) -> list:
    axis = world_axis()
    gathered = c.gather_objects({"rank": rank, "text": "x" * rank * 10, "none": None}, axis)
    sent = c.broadcast_object({"loss": math.inf, "name": "caf\u00e9"} if rank == 1 else None, axis, 1)
    assert sent == {"loss": math.inf, "name": "caf\u00e9"}
    assert math.isnan(c.broadcast_object(math.nan, axis))
    return gathered


def gradients(rank: int, world: int) -> None:
    """Every operator is linear: <A x, y> summed over ranks equals <x, A' y> summed over ranks, A' the backward.

    `copy_to` / `reduce_from` and `scatter_to` / `gather_from` are each other's transposes up to the convention that
    replicated tensors carry replicated gradients, so those are compared with the written-out answer.
    """
    axis = world_axis()
    x = whole(rank).requires_grad_()
    weights = torch.sin(whole(rank))
    (c.all_to_all(x, axis) * weights).sum().backward()
    assert torch.equal(x.grad, c.all_to_all(weights, axis))

    x.grad = None
    (c.copy_to(x, axis) * weights).sum().backward()
    assert torch.allclose(x.grad, sum(torch.sin(whole(r)) for r in range(world)))

    x.grad = None
    y = c.reduce_from(x, axis)
    assert torch.equal(y, sum(whole(r) for r in range(world)))
    (y * 3).sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 3))
    assert torch.equal(x.detach(), whole(rank))  # the input is not overwritten

    same = whole(7).requires_grad_()
    part = c.scatter_to(same, axis)
    rows = 6 // world
    assert torch.equal(part, whole(7)[rank * rows : (rank + 1) * rows])
    (part * (rank + 1)).sum().backward()
    assert same.grad[:, 0].tolist() == [r + 1 for r in range(world) for _ in range(rows)]

    part = whole(rank, rows).requires_grad_()
    full = c.gather_from(part, axis)
    assert torch.equal(full, torch.cat([whole(r, rows) for r in range(world)]))
    coefficients = torch.arange(12.0).view(6, 2)
    (full * coefficients).sum().backward()
    assert torch.equal(part.grad, coefficients[rank * rows : (rank + 1) * rows])


def gradient_is_not_overwritten(rank: int, world: int) -> None:
    x = torch.ones(3, requires_grad=True)
    twice = x * 2
    # The gradient of `+` is one tensor handed to both branches; reducing it in place would corrupt the second. The
    # product makes it contiguous: the gradient of `sum` is an expanded scalar, which is copied anyway.
    ((c.copy_to(twice, world_axis()) + twice) * torch.ones(3)).sum().backward()
    assert x.grad.tolist() == [2.0 * (world + 1)] * 3


def sizes_disagree(rank: int, world: int, later: bool) -> str:
    axis = world_axis()
    if later:
        c.all_to_all(torch.ones(6, 3), axis)
        c.all_to_all(torch.ones(12, 3), axis)
    with pytest.raises(RankDisagreement) as caught:
        c.all_to_all(torch.ones(12 if rank == 1 else 6, 3), axis)
    assert c.all_reduce(torch.ones(1), axis).item() == world  # the group is still usable
    return str(caught.value)


def agreements_end_with_their_groups(rank: int, world: int) -> tuple[int, int]:
    c.all_to_all(torch.zeros(world, 1), world_axis())
    during = len(c._agreed)
    destroy_groups()
    return during, len(c._agreed)


def missing_rank(rank: int, world: int) -> str:
    axis = world_axis()
    if rank == world - 1:
        time.sleep(4.0)  # or its leaving, not its absence, is what the others notice
        return ""
    with pytest.raises(RankDisagreement) as caught:
        c.barrier(axis, what="commit", timeout_s=0.5)
    return str(caught.value)


def faults(rank: int, world: int) -> list[str]:
    seen: list[str] = []
    c.set_fault_hook(seen.append)
    axis = world_axis()
    x = torch.ones(2, 1, requires_grad=True)
    c.all_to_all(x, axis).sum().backward()
    c.set_fault_hook(None)
    c.all_reduce(torch.ones(1), axis)
    return seen


def time_all_to_all(rank: int, world: int) -> tuple[float, float]:
    axis = world_axis()
    x = torch.ones(world, 64, 64)
    times = []
    for fn in (c.all_to_all, c._exchange):
        for _ in range(5):
            fn(x, axis)
        began = time.perf_counter()
        for _ in range(50):
            fn(x, axis)
        times.append((time.perf_counter() - began) / 50)
    return times[0], times[1]


@pytest.mark.parametrize("world", [2, 3])
def test_data_arrives_where_it_should(world):
    run_ranks(data_movers, world)


def test_small_objects_travel_without_pickle():
    for gathered in run_ranks(objects, 3):
        assert gathered == [{"rank": r, "text": "x" * r * 10, "none": None} for r in range(3)]


@pytest.mark.parametrize("world", [2, 3])
def test_gradients_are_the_transposed_exchange(world):
    run_ranks(gradients, world)


def test_a_shared_gradient_is_left_alone():
    run_ranks(gradient_is_not_overwritten, 2)


@pytest.mark.parametrize("later", [False, True])
def test_sizes_that_differ_raise_on_every_rank_before_data_moves(later):
    for text in run_ranks(sizes_disagree, 3, later, timeout_s=5):
        assert "rank 0: float32[6, 3], rank 1: float32[12, 3]" in text


def test_what_ranks_agreed_on_is_forgotten_with_their_groups():
    """On NCCL it is not asked again, and a new group may take the address of an old one on some ranks only."""
    assert run_ranks(agreements_end_with_their_groups, 2) == [(1, 0), (1, 0)]


def test_a_barrier_names_the_missing_rank():
    texts = run_ranks(missing_rank, 3)
    assert all("commit" in text for text in texts[:2])
    assert "2" in texts[0]


def test_fault_points_are_hit_forward_and_backward():
    for seen in run_ranks(faults, 2):
        assert seen == ["all_gather/world", "all_to_all/world", "all_to_all/world"]


def test_everything_is_a_no_op_on_one_process():
    axis = single_process().world
    x = whole(0)
    for fn in (c.all_reduce, c.broadcast, c.all_to_all, c.copy_to, c.reduce_from, c.scatter_to, c.gather_from):
        assert fn(x, axis) is x
    assert torch.equal(c.all_gather(x, axis)[0], x)
    assert c.gather_objects({"a": 1}, axis) == [{"a": 1}]
    assert c.broadcast_object("a", axis) == "a"
    c.barrier(axis)
    assert c.backend_of(axis) == "none"
