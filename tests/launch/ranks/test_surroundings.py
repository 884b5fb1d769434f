"""What other launchers and schedulers left in the environment: ignored, or refused, and never believed in part."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping

import pytest

from conf.errors import SetupError
from launch.ranks.surroundings import refuse_lone_task, settle_command, settle_rank

SEAT = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
ELASTIC = {
    "TORCHELASTIC_RUN_ID": "x",
    "TORCHELASTIC_RESTART_COUNT": "0",
    "TORCHELASTIC_MAX_RESTARTS": "3",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "TORCHELASTIC_ERROR_FILE": "/x/attempt_0/0/error.json",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "0",
    "ROLE_RANK": "0",
}
SLURM = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}
STEP = SLURM | {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}


@pytest.fixture
def listening() -> Iterator[str]:
    """A port at which somebody listens, as torchrun's store does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield str(server.getsockname()[1])


@pytest.fixture
def surround(monkeypatch: pytest.MonkeyPatch):
    """Take the place of the environment."""

    def be(variables: Mapping[str, str]) -> None:
        monkeypatch.setattr(os, "environ", {"HOME": "/home/me", **variables})

    return be


@pytest.mark.parametrize(
    "left",
    [
        {"TORCHELASTIC_USE_AGENT_STORE": "True"},
        {"TORCHELASTIC_MAX_RESTARTS": "3", "TORCHELASTIC_RUN_ID": "x"},
        {"WORLD_SIZE": "4"},
        {"RANK": "3"},
        {"RANK": "3", "WORLD_SIZE": "1"},
        {"LOCAL_RANK": "3", "MASTER_ADDR": "elsewhere", "MASTER_PORT": "x"},
        {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"},
        ELASTIC,
        SEAT | ELASTIC | {"WORLD_SIZE": "1"},  # of a torchrun with one rank, which is gone
    ],
)
def test_what_another_launcher_left_is_dropped_and_said(left, surround, capsys) -> None:
    surround(left)
    settle_rank([])
    assert os.environ == {"HOME": "/home/me"}
    assert capsys.readouterr().err == f"left over by another launcher and ignored: {', '.join(sorted(left))}\n"


def test_a_rank_of_torchrun_keeps_all_that_it_got(listening, surround, capsys) -> None:
    whole = SEAT | ELASTIC | {"MASTER_PORT": listening}
    surround(whole)
    settle_rank(["train.steps=3"])
    assert os.environ == {"HOME": "/home/me", **whole}
    assert capsys.readouterr().err == ""


def test_a_store_that_torchrun_does_not_serve_is_not_asked(surround) -> None:
    whole = SEAT | ELASTIC | {"TORCHELASTIC_USE_AGENT_STORE": "False"}
    surround(whole)
    settle_rank([])
    assert os.environ == {"HOME": "/home/me", **whole}


def test_a_rank_whose_torchrun_is_gone_ends(surround) -> None:
    surround(SEAT | ELASTIC)
    with pytest.raises(SetupError, match=r"TORCHELASTIC_RUN_ID: got 'x' .* no longer answers at 127\.0\.0\.1:1"):
        settle_rank([])


@pytest.mark.parametrize("argument", ["--local_rank=0", "train.steps=3"])
def test_a_rank_of_deepspeed_keeps_its_seat_and_nothing_of_a_torchrun_around_it(argument, surround) -> None:
    own = SEAT | {"LOCAL_RANK": "0", "LOCAL_SIZE": "2", "CROSS_RANK": "0", "CROSS_SIZE": "1"}
    left = ELASTIC if argument.startswith("--") else {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    surround(left | own)
    settle_rank([argument])
    assert os.environ == {"HOME": "/home/me", **own}


@pytest.mark.parametrize(
    ("part", "field"),
    [
        ({"RANK": "1", "WORLD_SIZE": "2"}, "MASTER_ADDR"),
        (SEAT | {"RANK": "2"}, "RANK"),
        (SEAT | {"MASTER_PORT": "http"}, "RANK"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "MASTER_ADDR"),
    ],
)
def test_a_rank_of_several_without_a_whole_seat_is_refused(part, field, surround) -> None:
    surround(part)
    with pytest.raises(SetupError, match=f"^{field}: got RANK=.*needs RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT"):
        settle_rank([])


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (STEP, "SLURM_STEP_NUM_TASKS: got 2 tasks of Slurm, .* (this is task 1)"),
        (SLURM | {"SLURM_STEPID": "0"}, "SLURM_NTASKS: got 2 tasks of Slurm"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE: got 2 tasks of mpirun, .* (this is task unknown)"),
        ({"PMI_SIZE": "16", "PMI_RANK": "0"}, "PMI_SIZE: got 16 tasks of mpiexec"),
        ({"PMIX_RANK": "1"}, "PMIX_RANK: got 2 tasks"),
        ({"PALS_RANKID": "0", "PALS_LOCAL_SIZE": "2"}, "PALS_LOCAL_SIZE: got 2 tasks of PALS"),
        ({"PALS_RANKID": "1", "PALS_LOCAL_SIZE": "1"}, "PALS_RANKID: got 2 tasks"),
        ({"ALPS_APP_PE": "3"}, "ALPS_APP_PE: got 4 tasks"),
        ({"PET_NNODES": "1:2"}, "PET_NNODES: got 2 tasks"),
    ],
)
def test_a_task_without_a_launcher_is_told_what_starts_one_run(variables, said, surround) -> None:
    pattern = said.replace("(", r"\(").replace(")", r"\)") + ".*pointsman slurm --submit.*torchrun --nnodes=N"
    surround(variables)
    with pytest.raises(SetupError, match=pattern):
        settle_rank([])
    surround(variables)
    settle_command()
    with pytest.raises(SetupError, match=pattern):
        refuse_lone_task(nodes=1)


@pytest.mark.parametrize(
    "variables",
    [
        SLURM | {"SLURM_PROCID": "0"},  # a batch script of two tasks
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"},  # a shell of salloc
        STEP | {"SLURM_STEP_ID": "4294967290", "SLURM_PROCID": "0"},  # the interactive step of salloc
        STEP | {"SLURM_STEP_NUM_TASKS": "1"},  # srun -n 1 in a job of two tasks
        {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0", "PMIX_RANK": "0", "PMI_SIZE": "1"},
        {"PALS_RANKID": "0", "PALS_LOCAL_SIZE": "1", "ALPS_APP_PE": "0"},
        {"SLURM_NTASKS": "", "PMI_SIZE": "many"},
    ],
)
def test_a_task_that_is_alone_is_a_run(variables, surround) -> None:
    surround(variables)
    settle_rank([])
    refuse_lone_task(nodes=1)


def test_a_task_on_each_of_several_nodes_may_start_its_ranks(surround) -> None:
    surround(STEP)
    refuse_lone_task(nodes=2)
    surround({"PALS_RANKID": "1", "PALS_LOCAL_SIZE": "1"})
    refuse_lone_task(nodes=3)  # of which PALS tells no number
    surround(STEP | SEAT)
    settle_rank([])  # what it has started


def test_a_command_takes_no_seat(surround, capsys) -> None:
    surround(SEAT | {"LOCAL_RANK": "3"})
    settle_command()
    assert os.environ == {"HOME": "/home/me"}
    assert "RANK=0 and WORLD_SIZE=2 are ignored" in capsys.readouterr().err
    surround({"LOCAL_RANK": "3", "TORCHELASTIC_RUN_ID": "x"})
    settle_command()
    assert os.environ == {"HOME": "/home/me"}
    assert capsys.readouterr().err == ""


def test_a_command_that_torchrun_has_started_twice_is_refused(listening, surround) -> None:
    surround(SEAT | ELASTIC | {"MASTER_PORT": listening})
    with pytest.raises(SetupError, match=r"of a torchrun that runs.*-m trainer\.main"):
        settle_command()
