"""Ranks of one machine, really started, with a small stand-in for the trainer; two torchrun agents that meet."""

from __future__ import annotations

import json
import os
import pty
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from launch.local import LOG_DIR_VARIABLE, free_port, plan
from launch.ranks.bound import BOUND_VARIABLE
from tests.launch.test_torchrun import launch

STANDIN = "tests.launch.standin"
OUTER = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "OMP_NUM_THREADS")}


# What `pointsman train` does to become its launcher.
BECOME = (
    "import os, sys; from launch.ranks.bound import end_with_starter; "
    "end_with_starter(); os.execv(sys.argv[1], sys.argv[1:])"
)


def start(tmp_path: Path, *words: str, stdout: Any = subprocess.PIPE, **changes: Any) -> subprocess.Popen[str]:
    """The process `pointsman train` becomes, in a folder that holds a foreign package `data`."""
    foreign = tmp_path / "data"
    foreign.mkdir(exist_ok=True)
    (foreign / "__init__.py").touch()
    planned = plan(launch(**changes), [f"out={tmp_path}", *words], run_name="run", environment=OUTER, module=STANDIN)
    return subprocess.Popen(
        planned.command, env=planned.environment, cwd=tmp_path, stdout=stdout, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    try:
        return process.communicate(timeout=90)[1]
    finally:
        process.kill()


def rank_report(tmp_path: Path, rank: int) -> dict[str, Any]:
    return json.loads((tmp_path / f"rank-{rank}.json").read_text())


def wait_for(path: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.05)


def test_one_rank_becomes_the_trainer_itself(tmp_path: Path) -> None:
    process = start(tmp_path, nproc=1)
    assert finish(process) == ""
    report = rank_report(tmp_path, 0)
    assert process.returncode == 0
    assert report["pid"] == process.pid
    assert report["env"]["WORLD_SIZE"] == "1"
    assert report["cwd"] == str(tmp_path)


@pytest.mark.slow
def test_two_ranks_meet_and_only_rank_0_speaks_on_the_terminal(tmp_path: Path) -> None:
    screen, terminal = pty.openpty()
    process = start(tmp_path, "act=none", stdout=terminal, nproc=2)
    os.close(terminal)
    errors = finish(process)
    shown = os.read(screen, 4096).decode()
    os.close(screen)
    assert process.returncode == 0, errors
    assert shown.strip() == "rank 0 of 2: sum 1, terminal True"
    reports = [rank_report(tmp_path, rank) for rank in (0, 1)]
    assert [r["sum"] for r in reports] == [1, 1]
    assert [r["env"]["LOCAL_WORLD_SIZE"] for r in reports] == ["2", "2"]
    assert reports[1]["argv"] == [f"out={tmp_path}", "act=none"]


@pytest.mark.slow
@pytest.mark.parametrize(("nproc", "bound"), [(1, False), (1, True), (2, False), (2, True)])
def test_a_run_under_nohup_outlives_the_shell_it_was_started_from(tmp_path: Path, nproc: int, bound: bool) -> None:
    """But not what started it with the wish that it should not."""
    words = [f"out={tmp_path}", "act=wait"]
    planned = plan(launch(nproc=nproc), words, run_name="run", environment=OUTER, module=STANDIN)
    command = shlex.join((sys.executable, "-c", BECOME, *planned.command))
    wish = f"export {BOUND_VARIABLE}=$$\n" if bound else ""
    (tmp_path / "go").write_text(
        f"{wish}nohup {command} > nohup.out 2>&1 & echo $!\nwhile [ ! -e end ]; do sleep 0.1; done\n"
    )
    shell = subprocess.Popen(["sh", "go"], env=planned.environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert shell.stdout is not None
    pid = int(shell.stdout.readline())
    for rank in range(nproc):
        wait_for(tmp_path / f"rank-{rank}.json")
    (tmp_path / "end").touch()
    shell.wait(timeout=60)
    if not bound:
        os.kill(pid, signal.SIGHUP)  # as the kernel does to what belongs to a terminal that is closed
        time.sleep(1.0)
        assert not (tmp_path / "stopped-0").exists(), (tmp_path / "nohup.out").read_text()
        os.kill(pid, signal.SIGTERM)
    for rank in range(nproc):
        wait_for(tmp_path / f"stopped-{rank}", seconds=30)


def test_more_than_ten_ranks_can_be_started(tmp_path: Path) -> None:
    planned = plan(launch(nproc=11), [], run_name="run", environment=OUTER, module="this")
    done = subprocess.run(planned.command, env=planned.environment, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Zen of Python") == 1


@pytest.mark.slow
def test_logs_are_removed_after_success_and_kept_after_failure(tmp_path: Path) -> None:
    for words, kept in (("act=none",), False), (("act=fail:1",), True):
        planned = plan(launch(), [f"out={tmp_path}", *words], run_name=None, environment=OUTER, module=STANDIN)
        subprocess.run(planned.command, env=planned.environment, capture_output=True, timeout=90)
        assert Path(planned.environment[LOG_DIR_VARIABLE]).exists() == kept


@pytest.mark.slow
def test_error_of_another_rank_is_told_at_the_end(tmp_path: Path) -> None:
    process = start(tmp_path, "act=fail:1", nproc=2)
    errors = finish(process)
    assert process.returncode == 2
    assert errors.splitlines()[-2:] == [
        "rank 1 failed: exit code 2",
        "  ConfigError: train.steps: got -1; needs a positive number; try train.steps=100",
    ]


@pytest.mark.slow
def test_crashed_rank_is_restarted(tmp_path: Path) -> None:
    process = start(tmp_path, "act=crash:1", nproc=2, max_restarts=1)
    errors = finish(process)
    assert (tmp_path / "crashed").exists()
    assert process.returncode == 0, errors
    assert "a rank failed; all ranks are restarted" in errors
    kept = Path(errors.split("output of the ranks: ")[1].strip())
    assert any("an unexpected crash" in log.read_text() for log in kept.rglob("attempt_0/1/stderr.log"))
    shutil.rmtree(kept)
    assert rank_report(tmp_path, 1)["sum"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_signal_reaches_every_rank_and_all_end(tmp_path: Path, signum: signal.Signals) -> None:
    process = start(tmp_path, "act=wait", nproc=2)
    wait_for(tmp_path / "rank-0.json")
    wait_for(tmp_path / "rank-1.json")
    process.send_signal(signum)
    errors = finish(process)
    assert process.returncode == 128 + signum, errors
    assert errors.strip().endswith(f"stopped by {signum.name}")
    assert [(tmp_path / f"stopped-{rank}").read_text() for rank in (0, 1)] == [signum.name] * 2


@pytest.mark.slow
def test_a_rank_that_hangs_is_named(tmp_path: Path) -> None:
    process = start(tmp_path, "act=hang:1", nproc=2)
    errors = finish(process)
    assert process.returncode == 1, errors
    assert "rank 0 ended after that: exit code 1" in errors
    assert "rank 1 failed: hung, and the others waited for it in vain; killed by SIGKILL" in errors
    assert "error: rank 1 no longer answers" in errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_a_rank_that_is_killed_is_named_and_the_other_says_a_line(tmp_path: Path) -> None:
    process = start(tmp_path, "act=die:1", nproc=2)
    errors = finish(process)
    assert process.returncode == 137, errors
    first, *others = errors.splitlines()
    assert first.startswith("error: rank 1 no longer answers: ")
    assert others[0] == "rank 0 ended after that: exit code 1"
    assert others[2:] == ["rank 1 failed: killed by SIGKILL"]


@pytest.mark.slow
def test_an_error_of_all_ranks_is_said_once(tmp_path: Path) -> None:
    process = start(tmp_path, "act=fail:all", nproc=2)
    errors = finish(process)
    assert process.returncode == 2
    assert errors.count("train.steps: got -1") == 1
    assert errors.splitlines()[-1] == "ranks 0, 1 failed: exit code 2"


@pytest.mark.slow
def test_an_error_of_all_ranks_is_said_once_below_torchrun(tmp_path: Path) -> None:
    """Before its own report, which has the words of every rank."""
    env = plan(launch(), [], run_name=None, environment=OUTER).environment
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", STANDIN]
    done = subprocess.run(
        [*command, f"out={tmp_path}", "act=fail:all"], env=env, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 1
    assert done.stderr.count("error: train.steps: got -1") == 1


@pytest.mark.slow
def test_two_agents_meet_by_rendezvous(tmp_path: Path) -> None:
    """Two nodes as far as one machine shows them: two agents, two ranks in all, plain torchrun on one side."""
    endpoint = f"127.0.0.1:{free_port()}"
    agents = [start(tmp_path, nproc=1, nodes=2, rdzv_endpoint=endpoint)]
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nnodes=2",
        "--nproc-per-node=1",
        "--rdzv-backend=c10d",
    ]
    torchrun += [f"--rdzv-endpoint={endpoint}", "--rdzv-id=run", "-m", STANDIN, f"out={tmp_path}"]
    env = plan(launch(), [], run_name=None, environment=OUTER).environment
    agents.append(subprocess.Popen(torchrun, env=env, stderr=subprocess.PIPE, text=True))
    errors = [finish(agent) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], errors
    assert [rank_report(tmp_path, rank)["env"]["LOCAL_WORLD_SIZE"] for rank in (0, 1)] == ["1", "1"]
    assert rank_report(tmp_path, 0)["sum"] == 1
