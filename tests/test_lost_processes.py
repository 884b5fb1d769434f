"""A run whose ranks, launcher or agents end at the wrong moment: who is named, what is kept, how the run ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from launch.local import free_port
from launch.ranks.environment import clean_environment
from tests.launch.ranks.test_bound import assert_gone, started_by
from tests.test_end_to_end import SMALL

ENDLESS = ("train.steps=1000000", "train.save_every=5", "train.eval_every=0", "logging.wandb=off")


def environment(**more: str) -> dict[str, str]:
    clean = {n: v for n, v in clean_environment(os.environ).items() if not n.startswith(("WANDB", "POINTSMAN"))}
    return {**clean, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **more}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of every run here: one text, prepared once."""
    folder = tmp_path_factory.mktemp("text")
    text = folder / "topics.jsonl"
    text.write_text("".join(json.dumps({"text": topic}) + "\n" for _, topic in sorted(topics.items())))
    return [*SMALL, *ENDLESS, f"data.files={text}", f"data.cache_dir={folder / 'cache'}", "name=run"]


def start(command: list[str], folder: Path, log: str) -> subprocess.Popen[bytes]:
    with (folder / log).open("wb") as out:
        return subprocess.Popen(
            [sys.executable, "-m", *command], cwd=folder, env=environment(), stdout=out, stderr=subprocess.STDOUT
        )


def wait_until_trained(folder: Path, *processes: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 240
    while not list(folder.glob("runs/run/checkpoints/step_*")):
        assert time.monotonic() < end, "no checkpoint"
        assert all(process.poll() is None for process in processes), [p.read_text() for p in folder.glob("*.log")]
        time.sleep(0.1)


def status(folder: Path) -> dict[str, object]:
    return json.loads((folder / "runs" / "run" / "status.json").read_text())


def rank_of(agent: subprocess.Popen[bytes], rank: int) -> int:
    """Process id."""
    seat = f"RANK={rank}".encode()
    (found,) = [p for p in started_by(agent.pid) if seat in Path(f"/proc/{p}/environ").read_bytes().split(b"\0")]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signum", "code", "ending", "reason", "last"),
    [
        (signal.SIGKILL, 137, "failed", "RankLost: rank 1 no longer answers: ", "rank 1 failed: killed by SIGKILL"),
        (signal.SIGTERM, 143, "stopped", "SIGTERM to rank 1", "stopped by SIGTERM to rank 1"),
    ],
)
def test_what_happened_to_one_rank_is_the_reason_of_all(tmp_path, settings, signum, code, ending, reason, last):
    run = start(["launch.cli", "train", *settings], tmp_path, "run.log")
    try:
        wait_until_trained(tmp_path, run)
        os.kill(rank_of(run, 1), signum)
        assert run.wait(90) == code
    finally:
        run.kill()
    told = (tmp_path / "run.log").read_text()
    assert told.splitlines()[-1] == last
    assert "Traceback" not in told
    assert status(tmp_path)["ending"] == ending
    assert str(status(tmp_path)["reason"]).startswith(reason)


@pytest.mark.slow
def test_a_run_whose_launcher_is_killed_saves_and_has_failed(tmp_path, settings):
    run = start(["launch.cli", "train", *settings], tmp_path, "run.log")
    try:
        wait_until_trained(tmp_path, run)
        ranks = started_by(run.pid)
    finally:
        run.kill()
        run.wait()
    assert len(ranks) == 2
    assert_gone(ranks, seconds=60)
    assert status(tmp_path)["ending"] == "failed"
    assert str(status(tmp_path)["reason"]).startswith("RankLost: the launcher of ranks 0, 1 has ended")
    assert (tmp_path / f"runs/run/checkpoints/step_{status(tmp_path)['step']:08d}").exists()


@pytest.mark.slow
def test_the_run_of_an_agent_that_is_killed_goes_on_with_the_other(tmp_path, settings):
    """Its rank's steps are not lost either."""
    words = ["torch.distributed.run", "--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=3"]
    words += ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}"]
    module = ["-m", "trainer.main", *settings, "parallel.ep=1"]
    first = start([*words, "--rdzv-conf=last_call_timeout=6,is_host=1", *module], tmp_path, "first.log")
    time.sleep(0.5)
    other = start([*words, "--rdzv-conf=last_call_timeout=6,is_host=0", *module], tmp_path, "other.log")
    try:
        wait_until_trained(tmp_path, first, other)
        assert "on 2 ranks" in (tmp_path / "first.log").read_text() + (tmp_path / "other.log").read_text()
        other.kill()
        end = time.monotonic() + 240
        while "on 1 ranks" not in (told := (tmp_path / "first.log").read_text()):
            assert time.monotonic() < end, told
            assert first.poll() is None, told
            time.sleep(0.2)
        first.send_signal(signal.SIGTERM)
        first.wait(90)
    finally:
        first.kill()
        other.kill()
    told = (tmp_path / "first.log").read_text()
    assert "error: the launcher of rank 1 has ended without its ranks" in told
    assert "continuing at step" in told
    assert status(tmp_path)["reason"] == "SIGTERM"


def test_tasks_that_slurm_started_are_no_runs_of_their_own(tmp_path, settings):
    """As `srun -n 2 python -m trainer.main` starts them."""
    command = [sys.executable, "-m", "trainer.main", *settings, "launch.nproc=1", "parallel.ep=1"]
    for task in "01":
        step = {"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_PROCID": task}
        done = subprocess.run(
            command, cwd=tmp_path, env=environment(**step), capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 2
        assert done.stderr.startswith("error: SLURM_NTASKS: got 2 tasks of Slurm")
        assert f"this is task {task}" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("module", [["launch.cli", "train"], ["trainer.main"]])
def test_what_other_launchers_left_changes_no_run(tmp_path, settings, module):
    left = {
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_MAX_RESTARTS": "3",
        "TORCHELASTIC_RUN_ID": "none",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "2",
        "MASTER_PORT": "29500",
        "SLURM_JOB_ID": "1",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": "0",
        "PET_RUN_PATH": "1",
        "PMI_RANK": "0",
    }
    command = [sys.executable, "-m", *module, *settings, "launch.nproc=1", "parallel.ep=1", "train.steps=2"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(**left), capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "on 1 ranks" in done.stdout
    assert status(tmp_path)["ending"] == "done"
