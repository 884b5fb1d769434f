"""A rank that lost another names it; what one rank raised, the others say in its words."""

import os
import time

import pytest
import torch
import torch.distributed as dist

from conf.errors import DataError, RankLost, is_peers_fault
from parallel.mesh.failure import told_to_peers
from tests.harness import run_ranks_raw


def troubled(rank, world, how):
    """Rank 1 ends or hangs at a collective; the others return what they were told."""
    dist.barrier()  # a rank that still connects when another ends fails where nobody tells or is told
    try:
        with told_to_peers():
            if rank == 1:
                if how == "raise":
                    raise DataError("row 7 of a.jsonl: broken")
                if how == "exit":
                    os._exit(9)
                time.sleep(60)
            dist.all_reduce(torch.ones(2))
    except RankLost as lost:
        return str(lost), lost.absent


@pytest.mark.parametrize(
    ("how", "told", "absent"),
    [
        ("raise", "rank 1 failed: DataError: row 7 of a.jsonl: broken", ()),
        ("exit", "rank 1 no longer answers: ", (1,)),
        pytest.param("hang", "rank 1 no longer answers: Timed out waiting 2000ms", (1,), marks=pytest.mark.slow),
    ],
)
def test_the_rank_that_failed_is_named_in_one_line(how, told, absent):
    first, cause, last = run_ranks_raw(troubled, 3, how, timeout_s=2, deadline_s=12)
    for rank in (first, last):
        assert rank.finished, rank.report()
        said, missing = rank.value
        assert said.startswith(told)
        assert "\n" not in said
        assert "gloo" not in said
        assert missing == absent
    assert not cause.finished


def raised_by_all(rank, world):
    began = time.monotonic()
    try:
        with told_to_peers():
            raise DataError("no file matches")
    except DataError as error:
        return str(error), time.monotonic() - began


def test_an_error_of_all_ranks_stays_what_it_is_and_nobody_waits():
    for rank in run_ranks_raw(raised_by_all, 2):
        said, seconds = rank.value
        assert said == "no file matches"
        assert seconds < 1


def test_without_process_groups_an_error_passes_through():
    with pytest.raises(ZeroDivisionError), told_to_peers():
        print(1 // 0)


@pytest.mark.parametrize(
    ("text", "peers"),
    [
        ("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:2", True),
        ("[.../gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 5000ms for recv operation", True),
        ("commit of step 3: not every rank came: [Rank 0]: Rank 1 failed to pass monitoredBarrier in 10 ms", True),
        ("[/x/gloo/transport/tcp/device.cc:84] ifa != nullptr. Unable to find address for: eth7", False),
        ("[enforce fail at /x/gloo/transport/tcp/pair.cc:446] op.preamble.length <= op.nbytes. 8 vs 4", False),
        ("No space left on device", False),
    ],
)
def test_what_counts_as_the_fault_of_a_peer(text, peers):
    assert is_peers_fault(text) == peers
