"""The batch script: what it says, that a shell reads it, and - where a Slurm answers - that it runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from conf.compose import compose
from conf.errors import ConfigError, SetupError
from conf.schema import RunConfig
from launch import cli
from launch.local import free_port
from launch.slurm import batch_script, script_of_run, submit

STANDIN = "tests.launch.standin"
ONE_NODE = Path(__file__).with_name("slurm_one_node.sh")


def config(tmp_path: Path, **launch: Any) -> RunConfig:
    cfg = default_config()
    return replace(cfg, runs_dir=str(tmp_path), name="job", launch=replace(cfg.launch, **launch))


@cache
def default_config() -> RunConfig:
    return compose([])


def checked(script: str) -> str:
    """`script`, after a shell has parsed it."""
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return script


def test_directives_say_what_was_configured(tmp_path: Path) -> None:
    cfg = config(
        tmp_path,
        nodes=2,
        nproc=4,
        slurm_partition="gpu",
        slurm_account="lab",
        slurm_time="1-12:00:00",
        slurm_gpus_per_node=4,
        slurm_cpus_per_task=32,
    )
    lines = checked(batch_script(cfg, [])).splitlines()
    assert {
        "#SBATCH --job-name=pointsman-job",
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=1",
        "#SBATCH --cpus-per-task=32",
        "#SBATCH --gpus-per-node=4",
        "#SBATCH --partition=gpu",
        "#SBATCH --account=lab",
        "#SBATCH --time=1-12:00:00",
        f"#SBATCH --output={tmp_path}/job/slurm-%j.out",
        "#SBATCH --signal=B:USR1@180",
        "#SBATCH --requeue",
    } <= set(lines)
    assert lines[0] == "#!/bin/bash"
    last_directive = max(n for n, line in enumerate(lines) if line.startswith("#SBATCH"))
    first_command = next(n for n, line in enumerate(lines) if line and not line.startswith("#"))
    assert last_directive < first_command  # Slurm ignores directives after the first command
    assert "export OMP_NUM_THREADS=8" in lines


def test_absent_settings_leave_no_directive(tmp_path: Path) -> None:
    script = checked(batch_script(config(tmp_path), []))
    for name in ("partition", "account", "gpus-per-node", "None"):
        assert name not in script


def test_agents_meet_on_the_first_node_at_a_port_of_the_job(tmp_path: Path) -> None:
    script = batch_script(config(tmp_path, nodes=2), ["train.steps=3"])
    assert 'head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)' in script
    assert "--nnodes=2" in script
    assert '"--rdzv-endpoint=$head:$port"' in script
    assert "--standalone" not in script
    assert "trainer.main" in script


def test_overrides_survive_the_shell(tmp_path: Path) -> None:
    awkward = ["data.files=['a b/*.txt']", "name=it$HOME", "x=`id`"]
    script = checked(batch_script(config(tmp_path), awkward))
    words = subprocess.run(
        ["bash", "-c", "printf '%s\\0' " + script.split("trainer.main \\\n")[1].split("\n    echo")[0]],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")[:-1]
    assert words == awkward


def test_no_variable_of_the_environment_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "canary-0123456789")
    monkeypatch.setenv("HARMLESS", "canary-harmless")
    script = batch_script(config(tmp_path), ["logging.wandb_entity=canary-0123456789"])
    assert "canary" not in script


def test_container_runs_the_images_python_with_the_run_folder_mounted(tmp_path: Path) -> None:
    script = checked(batch_script(config(tmp_path, slurm_container="registry#pointsman:1"), []))
    assert "--container-image='registry#pointsman:1'" in script
    assert f"\nfolder={tmp_path}/job\n" in script
    assert '--container-mounts="$PWD:$PWD,$folder:$folder"' in script
    assert "python -m launch.agent" in script
    assert "PYTHONPATH" not in script


def test_files_that_only_compute_nodes_see_are_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["data=text", "data.files=/scratch/nowhere/*.txt", "name=job", f"runs_dir={tmp_path}"]
    assert script_of_run(run) == 0
    printed = capsys.readouterr()
    assert "data.files=/scratch/nowhere/*.txt" in checked(printed.out)
    note = "note: not on this machine, so it must be on the compute nodes: data.files: got '/scratch/nowhere/*.txt'"
    assert printed.err.startswith(note)
    with pytest.raises(ConfigError, match=r"data.files: .*folder '/scratch/nowhere' does not exist"):
        compose(run)


def test_a_requeued_job_keeps_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script_of_run([f"runs_dir={tmp_path}"], write=tmp_path / "job.sbatch") == 0
    script = (tmp_path / "job.sbatch").read_text()
    name = next(line for line in script.splitlines() if "--job-name=pointsman-" in line).split("pointsman-")[1]
    assert f"name={name}" in script.split("trainer.main")[1]
    assert (tmp_path / name).is_dir()  # Slurm does not create the folder of its output
    assert "sbatch" in capsys.readouterr().out


def test_a_job_asks_for_gpus_and_restarts_unless_told_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["name=big", f"runs_dir={tmp_path}"]
    assert script_of_run(["launch.nproc=4", *run]) == 0
    script = capsys.readouterr().out
    assert "#SBATCH --gpus-per-node=4" in script
    assert "--max-restarts=3" in script
    assert "launch=slurm" in script.split("trainer.main")[1]
    assert cli.run(["slurm", "launch=local", "launch.nproc=4", *run]) == 0
    assert "gpus-per-node" not in capsys.readouterr().out


def test_submitting_without_slurm_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SetupError, match=r"sbatch: not found on PATH.*--write FILE"):
        submit("#!/bin/bash\n", folder=tmp_path)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Slurm that answers: the machine's own, else one of one node started for these tests; skips without either."""
    if shutil.which("sinfo") is None:
        pytest.skip("Slurm is not installed (Debian: apt-get install slurm-wlm munge)")
    if subprocess.run(["sinfo"], capture_output=True, timeout=60).returncode == 0:
        yield
        return
    if os.geteuid() != 0 or not all(shutil.which(name) for name in ("slurmctld", "slurmd", "munged")):
        pytest.skip("no Slurm controller answers, and starting one needs root, slurmctld, slurmd and munged")
    folder = tmp_path_factory.mktemp("slurm")
    started = subprocess.run(
        ["bash", str(ONE_NODE), "start", str(folder), str(free_port())], capture_output=True, text=True, timeout=60
    )
    if started.returncode != 0:
        pytest.skip(f"a Slurm of one node does not start here: {started.stderr.strip()}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", started.stdout.strip())
        yield
        subprocess.run(["bash", str(ONE_NODE), "stop", str(folder)], check=True)


def submitted(cfg: RunConfig, *words: str, folder: Path) -> str:
    """Submit the stand-in with `words`; the job's id."""
    script = batch_script(cfg, [f"out={folder}", *words], module=STANDIN)
    (folder / "job").mkdir()
    (folder / "job.sbatch").write_text(script)
    done = subprocess.run(
        ["sbatch", "--parsable", str(folder / "job.sbatch")], capture_output=True, text=True, cwd=folder, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().partition(";")[0]


def job(number: str) -> dict[str, str]:
    shown = subprocess.run(["scontrol", "show", "job", number], capture_output=True, text=True, timeout=60).stdout
    return dict(word.split("=", 1) for word in shown.split() if "=" in word)


def wait_for_state(number: str, *states: str, seconds: float = 90) -> dict[str, str]:
    end = time.monotonic() + seconds
    while (found := job(number))["JobState"] not in states:
        assert time.monotonic() < end, f"job {number} is {found['JobState']} ({found.get('Reason')})"
        time.sleep(0.5)
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("slurm")
def test_two_ranks_run_under_slurm(tmp_path: Path) -> None:
    number = submitted(config(tmp_path, nproc=2), folder=tmp_path)
    end = wait_for_state(number, "COMPLETED", "FAILED", "CANCELLED")
    output = (tmp_path / "job" / f"slurm-{number}.out").read_text()
    assert end["JobState"] == "COMPLETED", output
    reports = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert [report["sum"] for report in reports] == [1, 1]
    assert {report["env"]["SLURM_JOB_ID"] for report in reports} == {number}
    assert "rank 0 of 2: sum 1" in output
    assert "start 1" in output


@pytest.mark.slow
@pytest.mark.usefixtures("slurm")
def test_failed_rank_fails_the_job_with_its_message(tmp_path: Path) -> None:
    number = submitted(config(tmp_path, nproc=2), "act=fail:1", folder=tmp_path)
    end = wait_for_state(number, "COMPLETED", "FAILED", "CANCELLED")
    assert (end["JobState"], end["ExitCode"]) == ("FAILED", "2:0")
    assert "ConfigError: train.steps: got -1" in (tmp_path / "job" / f"slurm-{number}.out").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("slurm")
def test_notice_before_the_limit_stops_the_ranks_and_requeues(tmp_path: Path) -> None:
    number = submitted(config(tmp_path, nproc=2), "act=wait", folder=tmp_path)
    try:
        end = time.monotonic() + 90
        while not (tmp_path / "rank-1.json").exists() or not (tmp_path / "rank-0.json").exists():
            assert time.monotonic() < end, job(number)
            time.sleep(0.2)
        subprocess.run(["scancel", "--batch", "--signal=USR1", number], check=True)
        while job(number)["Restarts"] != "1":
            assert time.monotonic() < end, job(number)
            time.sleep(0.5)
        assert [(tmp_path / f"stopped-{rank}").read_text() for rank in (0, 1)] == ["SIGTERM", "SIGTERM"]
    finally:
        subprocess.run(["scancel", number], check=True)
