"""A job that goes back into the queue: its script run start after start against stand-ins for Slurm's commands."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from conf.compose import compose
from conf.errors import ConfigError
from conf.rules.sections import slurm_seconds
from launch.ranks.allocator import TUNABLES
from launch.slurm import batch_script
from tests.launch.shells import Shell

JOB = "$(cut -d' ' -f4 /proc/$PPID/stat)"  # the script, which runs srun in a shell of its own
# Gets the notice, saves a checkpoint if it is to, and ends as ranks do that were stopped.
SRUN = f"""#!/bin/bash
kill -USR1 {JOB}
sleep 0.2
[ -z "${{SAVES-}}" ] || mkdir -p "$SAVES"
exit 143
"""


@pytest.fixture
def job(tmp_path: Path) -> Shell:
    made = Shell(tmp_path)
    made.add("srun", SRUN)
    return made


def start(job: Shell, number: int, *, saves: str = "", name: str = "77") -> subprocess.CompletedProcess[str]:
    """One start of the job; `saves` is the checkpoint that comes of it."""
    cfg = compose(["launch=slurm", "name=x", f"runs_dir={job.folder}/runs"])
    folder = job.folder / "runs" / "x" / "checkpoints"
    variables = {"SAVES": str(folder / saves)} if saves else {}
    return job.run(batch_script(cfg, []), SLURM_RESTART_COUNT=str(number), SLURM_JOB_ID=name, **variables)


def test_a_job_that_makes_checkpoints_goes_back_into_the_queue_again_and_again(job: Shell) -> None:
    for number in range(4):
        done = start(job, number, saves=f"step_{number + 1:08d}")
        assert (done.returncode, done.stderr) == (0, "")
    assert job.called("scontrol-requeue") == [["requeue", "77"]] * 4


def test_two_starts_without_a_new_checkpoint_end_the_job_with_the_reason(job: Shell) -> None:
    assert start(job, 0, saves="step_00000001").returncode == 0
    assert start(job, 1).returncode == 0
    done = start(job, 2)
    assert done.returncode == 143
    assert done.stderr.startswith("error: 2 starts of job 77 brought no new checkpoint")
    assert len(job.called("scontrol-requeue")) == 2


def test_a_start_that_somebody_else_put_into_the_queue_counts_too(job: Shell) -> None:
    """Slurm itself after a node failed: nothing of the script ran at the end of those starts."""
    job.add("srun", f"#!/bin/bash\nkill -KILL {JOB}\n")
    assert [start(job, number).returncode for number in range(2)] == [-9, -9]
    done = start(job, 2)
    assert done.returncode == 1
    assert "brought no new checkpoint" in done.stderr


def test_a_job_that_is_submitted_again_begins_to_count_anew(job: Shell) -> None:
    for name in ("77", "78"):
        assert [start(job, number, name=name).returncode for number in range(2)] == [0, 143]
    (job.folder / "runs" / "x" / "starts-without-checkpoint").write_text("garbage \0 \n")
    assert start(job, 0, name="78").returncode == 0


def test_a_job_that_ends_by_itself_is_not_put_back(job: Shell) -> None:
    job.add("srun", "#!/bin/bash\nexit 2\n")
    assert start(job, 0).returncode == 2
    job.add("srun", f"#!/bin/bash\nkill -USR1 {JOB}\nexit 0\n")  # done at the moment of the notice
    for number in range(20):  # bash forgot the code of a step that ended while the trap ran, in a quarter of the cases
        assert start(job, 0, name=str(number)).returncode == 0
    assert job.called("scontrol-requeue") == []


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("4", 240), ("4:30", 270), ("1:00:00", 3600), ("2-12", 216_000), ("1-0:05", 86_700), ("1-01:01:01", 90_061),
     ("0", 0), ("soon", None), ("1:2:3:4", None), ("", None), ("-1", None), ("1-", None), ("\u0663", None)],
)  # fmt: skip
def test_limits_as_slurm_reads_them(text: str, seconds: int | None) -> None:
    assert slurm_seconds(text) == seconds


@pytest.mark.parametrize("text", ["1", "3", "4", "0:03:00", "0:4:00", "0-00:02", "3:59", "0-0:0:1"])
def test_a_limit_that_is_over_before_the_notice_could_help_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"launch\.slurm_time: got .*needs more than 240 seconds.* try launch"):
        compose([f"launch.slurm_time={text}"])


@pytest.mark.parametrize("text", ["5", "0:04:01", "0", "1-00:00:00"])
def test_other_limits_are_taken(text: str) -> None:
    assert compose([f"launch.slurm_time={text}"]).launch.slurm_time == text


@pytest.mark.parametrize(
    ("set_by_the_user", "kept"),
    [({}, TUNABLES), ({"GLIBC_TUNABLES": ""}, ""), ({"LD_PRELOAD": "x.so"}, None), ({"MALLOC_ARENA_MAX": "2"}, None)],
    ids=str,
)
def test_the_allocator_is_set_unless_the_user_chose_one(job: Shell, set_by_the_user, kept) -> None:
    seen = job.folder / "seen"
    job.add("srun", f'#!/bin/bash\n[ -z "${{GLIBC_TUNABLES+set}}" ] || printf %s "$GLIBC_TUNABLES" > {seen}\n')
    script = batch_script(compose(["launch=slurm", "name=x", f"runs_dir={job.folder}/runs"]), [])
    assert job.run(script, **set_by_the_user).returncode == 0
    assert (seen.read_text() if seen.exists() else None) == kept
