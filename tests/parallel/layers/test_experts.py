"""Where buffer rows go and come back from, and sizes that do not agree."""

from __future__ import annotations

import pytest
import torch

from conf.errors import RankDisagreement
from parallel.layers.experts import LocalExchange, MeshExchange, build_exchange
from parallel.mesh.axes import single_process
from parallel.mesh.groups import init_groups
from tests.harness import run_ranks
from tests.settings import parallel_config

E, G, C, D = 4, 2, 3, 2


def buffer_of(rank: int) -> torch.Tensor:
    """Row values that tell rank, expert, group and slot: [E, G, C, D]."""
    index = torch.arange(E * G * C).view(E, G, C, 1).expand(E, G, C, D)
    return index.double() + 1000 * rank


def round_trip(rank: int, world: int, ep: int) -> None:
    mesh = init_groups(parallel_config(1, ep, 1))
    exchange = build_exchange(mesh)
    sent = buffer_of(rank).requires_grad_()
    rows = exchange.to_experts(sent)
    local = E // ep
    assert rows.shape == (local, ep * G * C, D)
    for i, source in enumerate(mesh.ep.ranks):
        for x in range(local):
            want = buffer_of(source)[mesh.ep.rank * local + x].reshape(G * C, D)
            assert torch.equal(rows[x, i * G * C : (i + 1) * G * C], want)
    back = exchange.from_experts(rows, groups=G)
    assert torch.equal(back, sent)
    weight = torch.rand(E, G, C, D, dtype=torch.float64)
    (back * weight).sum().backward()
    assert torch.equal(sent.grad, weight)
    numbers = exchange.gather_rows(torch.tensor([10 * rank, 10 * rank + 1]))
    assert numbers.tolist() == [10 * source + g for source in mesh.ep.ranks for g in range(G)]


@pytest.mark.parametrize(("world", "ep"), [(2, 1), (2, 2), (4, 2), (4, 4)])
def test_round_trip(world, ep):
    run_ranks(round_trip, world, ep)


def test_local_round_trip_needs_no_process_group():
    exchange = build_exchange(single_process())
    assert isinstance(exchange, LocalExchange)
    rows = exchange.to_experts(buffer_of(0))
    assert rows.shape == (E, G * C, D)
    assert torch.equal(exchange.from_experts(rows, groups=G), buffer_of(0))
    assert torch.equal(MeshExchange(single_process()).to_experts(buffer_of(0)), rows)


def uneven_round_trip(rank: int, world: int, ep: int, counts: list[list[int]]) -> None:
    """Sorted rows of each rank, with two of dropped choices behind, some ranks without any or sending to one alone."""
    mesh = init_groups(parallel_config(1, ep, 1))
    exchange = build_exchange(mesh)
    mine, local = counts[rank], E // ep
    numbers = torch.tensor([10_000 * rank + 100 * e + n for e in range(E) for n in range(mine[e])] + [-1, -1])
    sent = numbers.double().unsqueeze(1).expand(-1, D).clone().requires_grad_()
    plan = exchange.plan_rows(torch.tensor(mine), rows=len(sent))
    rows = exchange.rows_to_experts(sent, plan)
    experts = range(mesh.ep.rank * local, (mesh.ep.rank + 1) * local)
    want = [
        10_000 * source + 100 * e + n for e in experts for source in mesh.ep.ranks for n in range(counts[source][e])
    ]
    assert plan.counts_X.tolist() == [sum(counts[source][e] for source in mesh.ep.ranks) for e in experts]
    assert rows[: len(want), 0].tolist() == want
    assert exchange.rows_to_experts(numbers, plan)[: len(want)].tolist() == want
    back = exchange.rows_from_experts(rows, plan)
    assert torch.equal(back[:-2], sent[:-2])
    assert back.shape == sent.shape
    weight = torch.rand(len(sent), D, dtype=torch.float64)
    (back * weight)[:-2].sum().backward()
    assert torch.equal(sent.grad[:-2], weight[:-2])


@pytest.mark.parametrize(
    ("ep", "counts"),
    [
        (1, [[1, 2, 0, 3]] * 2),
        (2, [[1, 2, 0, 3], [4, 0, 2, 1]]),
        (2, [[0, 0, 0, 0], [0, 0, 5, 1]]),
        (2, [[0, 0, 0, 0], [0, 0, 0, 0]]),
        (4, [[0, 7, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [3, 1, 1, 2]]),
    ],
)
def test_sorted_rows_travel_and_come_back(ep, counts):
    run_ranks(uneven_round_trip, len(counts), ep, counts)


def expert_shards(rank: int, world: int) -> None:
    """etp = tp: what enters is whole on both ranks, its gradient is summed; what leaves is summed."""
    mesh = init_groups(parallel_config(2, 1, 2))
    exchange = build_exchange(mesh)
    assert (exchange.etp_size, exchange.etp_rank, exchange.group_shards) == (2, rank, 1)
    sent = buffer_of(0).requires_grad_()
    partial = exchange.to_experts(sent) * (rank + 1)
    back = exchange.from_experts(partial, groups=G)
    assert torch.equal(back, buffer_of(0) * 3)
    back.sum().backward()
    assert torch.equal(sent.grad, torch.full_like(sent, 3.0))


def group_shares(rank: int, world: int) -> None:
    """etp = 1 < tp: groups are shared out over tp and come back; gradients and sums are whole on both ranks."""
    exchange = build_exchange(init_groups(parallel_config(2, 2, 1)))
    assert exchange.group_shards == 2
    x = torch.arange(8.0, dtype=torch.float64).view(4, 2).requires_grad_()
    mine = exchange.enter(x)
    assert torch.equal(mine, x[2 * rank : 2 * rank + 2])
    weight = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    y = exchange.leave(mine * exchange.shared_weight(weight))
    assert torch.equal(y, 2 * x)
    loss = exchange.sum_shards(mine.sum())
    assert float(loss) == float(x.sum())
    ((y * torch.arange(4.0).unsqueeze(1)).sum() + loss).backward()
    assert torch.equal(x.grad, (2 * torch.arange(4.0, dtype=torch.float64) + 1).unsqueeze(1).expand(4, 2))
    assert float(weight.grad) == float((x.detach() * torch.arange(4.0).unsqueeze(1)).sum())
    assert exchange.enter(torch.tensor([True, True, False, False])).tolist() == [rank == 0] * 2


def test_expert_shards():
    run_ranks(expert_shards, 2)


def test_group_shares():
    run_ranks(group_shares, 2)


def disagree(rank: int, world: int) -> str:
    """A capacity of its own on rank 1, after a call that agreed."""
    exchange = build_exchange(init_groups(parallel_config(1, 2, 1)))
    exchange.to_experts(buffer_of(rank))
    try:
        exchange.to_experts(torch.zeros(E, G, C + rank, D))
    except RankDisagreement as error:
        return str(error)
    return "not noticed"


def test_sizes_that_differ_between_ranks_are_refused_on_every_rank():
    texts = run_ranks(disagree, 2)
    assert texts[0] == texts[1]
    assert "[4, 2, 3, 2]" in texts[0]
    assert "[4, 2, 4, 2]" in texts[0]
