"""Processes that must not outlive the one that started them, which is killed at any moment."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.local import plan
from launch.ranks.bound import BOUND_VARIABLE
from tests.launch.test_local import OUTER, STANDIN, wait_for
from tests.launch.test_torchrun import launch

# Starts two ranks and is killed so many seconds later.
_LAUNCHER = f"""
import os, signal, subprocess, sys, time
command, own, after = sys.argv[1], sys.argv[2], float(sys.argv[3])
env = {{**os.environ, "WORLD_SIZE": "2", "CROSS_SIZE": "1"}}
if own == "own":
    env["{BOUND_VARIABLE}"] = str(os.getpid())
ranks = [subprocess.Popen([sys.executable, "-c", command], env=env) for _ in range(2)]
print(*[rank.pid for rank in ranks], flush=True)
time.sleep(after)
os.kill(os.getpid(), signal.SIGKILL)
"""
_RANK = "from launch.ranks.bound import die_with_launcher; die_with_launcher(); import time; time.sleep(600)"


def gone(pid: int) -> bool:
    """Whether the process has ended; one that nobody has waited for yet is a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def assert_gone(pids: list[int], seconds: float) -> None:
    end = time.monotonic() + seconds
    while left := [pid for pid in pids if not gone(pid)]:
        if time.monotonic() > end:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            raise AssertionError(f"{left} outlived their launcher")
        time.sleep(0.02)


def adopts_by_1() -> bool:
    """Whether an orphan's parent is a process 1 of another session, as on most machines and in most containers."""
    script = "import os, time; print(os.getpid(), flush=True); os.fork() or time.sleep(1) or print(os.getppid())"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60).stdout.split()
    return shown[1:] == ["1"] and os.getsid(1) != os.getsid(0)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("after", [0.0, 0.001, 0.01, 0.02, 0.03, 0.05, 0.1, 0.3])
def test_no_rank_outlives_a_launcher_however_early_it_is_killed(own: bool, after: float) -> None:
    if not own and not adopts_by_1():
        pytest.skip("orphans are adopted by a process that a rank cannot tell from its launcher")
    command = [sys.executable, "-c", _LAUNCHER, _RANK, "own" if own else "other", str(after)]
    env = plan(launch(nproc=1), [], run_name=None, environment=os.environ).environment
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert_gone([int(word) for word in done.stdout.split()], seconds=20)


_ALONE = """
import os, signal, sys, time
if "nohup" in sys.argv:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
if os.fork() == 0:
    time.sleep(float(sys.argv[3]) if sys.argv[3:] else 0)
    from launch.ranks.bound import die_with_launcher
    bound = die_with_launcher()
    time.sleep(2)
    open(sys.argv[1], "w").write(str(bound))
"""


def test_a_rank_that_is_alone_outlives_its_parent(tmp_path: Path) -> None:
    env = plan(launch(nproc=1), [], run_name=None, environment=OUTER).environment
    subprocess.run([sys.executable, "-c", _ALONE, tmp_path / "out"], env=env, timeout=60, check=True)
    wait_for(tmp_path / "out")
    time.sleep(0.1)
    assert (tmp_path / "out").read_text() == "False"


@pytest.mark.parametrize(("how", "bound"), [("nohup", "False"), ("shell", "True")])
def test_a_rank_that_was_started_by_hand_and_whose_shell_is_gone_runs(tmp_path: Path, how: str, bound: str) -> None:
    env = plan(launch(nproc=1), [], run_name=None, environment=OUTER).environment | {"RANK": "0", "WORLD_SIZE": "2"}
    subprocess.run([sys.executable, "-c", _ALONE, tmp_path / "out", how, "0.5"], env=env, timeout=60, check=True)
    wait_for(tmp_path / "out")
    time.sleep(0.1)
    assert (tmp_path / "out").read_text() == bound


def started_by(pid: int) -> list[int]:
    """Process ids of its children."""
    listed = [Path(f"/proc/{pid}/task/{task}/children") for task in os.listdir(f"/proc/{pid}/task")]
    return [int(word) for path in listed for word in path.read_text().split()]


@pytest.fixture
def moments() -> Iterator[float]:
    """Seconds after the first rank was started, spread over what ranks do until they wait."""
    draw = random.Random(9)
    return (draw.uniform(0.0, 2.5) for _ in range(100))


@pytest.mark.slow
@pytest.mark.parametrize("round_", range(8))
def test_no_rank_outlives_our_agent(tmp_path: Path, round_: int, moments: Iterator[float]) -> None:
    after = [next(moments) for _ in range(round_ + 1)][-1]
    planned = plan(launch(nproc=2), [f"out={tmp_path}", "act=wait"], run_name="run", environment=OUTER, module=STANDIN)
    agent = subprocess.Popen(planned.command, env=planned.environment, cwd=tmp_path)
    try:
        end = time.monotonic() + 60
        while not started_by(agent.pid):
            assert time.monotonic() < end, "no rank was started"
            time.sleep(0.001)
        time.sleep(after)
        ranks = started_by(agent.pid)
    finally:
        agent.kill()
        agent.wait()
    assert_gone(ranks, seconds=20)
    assert not list(tmp_path.glob("stopped-*")), "the end of a launcher is no request to stop"
