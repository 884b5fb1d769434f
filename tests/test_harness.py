"""The harness itself: values come back in order, and every way to fail becomes a report."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch
import torch.distributed as dist

from tests.harness import run_ranks, run_ranks_raw


def total_of_ranks(rank: int, world: int, factor: float) -> tuple[int, torch.Tensor]:
    x = torch.full((3,), rank * factor)
    dist.all_reduce(x)
    return rank, x


def fail_on_one(rank: int, world: int) -> int:
    if rank == 1:
        raise ValueError("wrong on purpose")
    return rank


def hang_on_one(rank: int, world: int) -> None:
    if rank == 1:
        time.sleep(30)


def die(rank: int, world: int) -> None:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def test_values_come_back_in_rank_order():
    values = run_ranks(total_of_ranks, 3, 2.0)
    assert [rank for rank, _ in values] == [0, 1, 2]
    assert all(torch.equal(x, torch.full((3,), 6.0)) for _, x in values)


def test_an_exception_is_an_assertion_with_the_traceback():
    with pytest.raises(AssertionError, match=r"rank 1: exit code 1[\s\S]*ValueError: wrong on purpose"):
        run_ranks(fail_on_one, 2)


def test_a_hang_is_killed_and_its_stack_reported():
    began = time.monotonic()
    with pytest.raises(AssertionError, match=r"rank 1: hung[\s\S]*hang_on_one"):
        run_ranks(hang_on_one, 2, deadline_s=1.5)
    assert time.monotonic() - began < 5


def test_a_signal_is_an_exit_code():
    results = run_ranks_raw(die, 2, backend=None)
    assert [r.exit_code for r in results] == [0, -signal.SIGKILL]
    assert not results[1].finished
