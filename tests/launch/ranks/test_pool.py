"""Crashes, hangs and errors of one call are told, the first one first, and the next call runs in fresh ranks."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conf.errors import RanksFailed
from launch.ranks.environment import clean_environment
from launch.ranks.pool import RankPool
from tests import harness


def place(seat, word):
    return seat.rank, seat.world, word, os.environ["RANK"], os.environ["WORLD_SIZE"], os.environ["MINE"], os.getpid()


def trouble(seat, kind):
    """On rank 1; a second later the others see that something is wrong with it."""
    if seat.rank == 1:
        if kind == "raise":
            raise ValueError("a planted error")
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "exit":
            os._exit(7)
        if kind in ("hang", "stall"):
            time.sleep(600)
        if kind == "travel":
            return lambda: None
    if kind == "stall":
        raise RuntimeError("[/x/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 5000ms for recv operation")
    if kind not in ("hang", "travel"):
        time.sleep(1)
        raise RuntimeError("lost rank 1")
    return None


@pytest.fixture(scope="module")
def pool():
    harness.start_server()
    with RankPool(3, environment={**os.environ, "MINE": "x"}, preload=(), start="fork") as made:
        yield made


def test_values_come_in_order_of_ranks_from_the_same_processes(pool):
    first, second = pool.run(place, "a"), pool.run(place, "b", world=2)
    assert [each[:6] for each in first] == [(rank, 3, "a", str(rank), "3", "x") for rank in range(3)]
    assert [each[:6] for each in second] == [(rank, 2, "b", str(rank), "2", "x") for rank in range(2)]
    assert [each[6] for each in first[:2]] == [each[6] for each in second]


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("raise", "rank 1 raised ValueError: a planted error"),
        ("kill", "rank 1 was killed by SIGKILL"),
        ("exit", "rank 1 ended with exit code 7"),
        ("hang", "rank 1 hung: no answer after 1 s; rank 1 was at"),
        ("stall", "rank 1 hung: the others waited in vain; rank 1 was at"),
        ("travel", "rank 1 raised"),
    ],
)
def test_what_failed_first_is_named_first_and_the_next_call_runs(pool, kind, told):
    with pytest.raises(RanksFailed) as failed:
        pool.run(trouble, kind, timeout_s=1 if kind == "hang" else 30)
    lines = str(failed.value).splitlines()
    assert lines[0].startswith(told)
    if kind in ("raise", "hang", "stall"):
        assert any("in trouble" in line for line in lines), "where it was"
    if kind == "stall":
        assert any(line.startswith("rank 0 raised RuntimeError: [/x/gloo") for line in lines)
    elif kind not in ("hang", "travel"):
        assert [line for line in lines if "lost rank 1" in line], lines
    assert [each[2] for each in pool.run(place, "again")] == ["again"] * 3


def test_a_rank_that_dies_while_it_is_idle_is_told(pool):
    pids = [each[6] for each in pool.run(place, "a")]
    os.kill(pids[2], signal.SIGKILL)
    with pytest.raises(RanksFailed, match="rank 2 was killed by SIGKILL"):
        pool.run(place, "b")


_OWNER = """
import os, sys, time
from launch.ranks.pool import RankPool
from tests.launch.ranks.test_pool import place
if __name__ == "__main__":
    with RankPool(2, environment={**os.environ, "MINE": "x"}, preload=(), start=sys.argv[1]) as pool:
        print(*[each[6] for each in pool.run(place, "a")], flush=True)
        time.sleep(600)
"""


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_nothing_is_left_running_when_the_owner_is_killed(tmp_path: Path, start: str):
    script = tmp_path / "owner.py"
    script.write_text(_OWNER)
    environment = clean_environment(os.environ)
    owner = subprocess.Popen([sys.executable, script, start], env=environment, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    pids = [int(word) for word in owner.stdout.readline().split()]
    assert len(pids) == 2
    owner.kill()
    owner.wait()
    end = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < end, pids
        time.sleep(0.05)
