"""What launchers and schedulers have left in the environment: believed where it is whole, else dropped or refused.

A rank is what its variables say, and the same variables reach processes that are none: a shell inside a job, a
notebook, a batch script. And a scheduler starts as many processes as it has tasks, whether a launcher is among them or
not. So the first thing each process of a run does is to ask here.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import MutableMapping, Sequence
from typing import NamedTuple

from conf.errors import SetupError
from launch.ranks.environment import OF_TORCHRUN, is_launchers

_SEAT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_ELASTIC = "TORCHELASTIC_"
# What torchrun gives a rank besides.
_ELASTIC_SEAT = tuple(
    _ELASTIC + name for name in ("RUN_ID", "RESTART_COUNT", "MAX_RESTARTS", "USE_AGENT_STORE", "ERROR_FILE")
)
_STORE_TRIES, _STORE_PAUSE_S = 3, 0.3
_BATCH_STEP = 2**31  # Slurm numbers its batch and interactive steps from the top of 32 bits; they have one task


class Tasks(NamedTuple):
    """Variables in which a scheduler tells its tasks their number and how many they are."""

    scheduler: str
    rank: str
    sizes: tuple[str, ...]  # the first that is set counts


_TASKS = (
    Tasks("Slurm", "SLURM_PROCID", ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")),
    Tasks("mpirun", "OMPI_COMM_WORLD_RANK", ("OMPI_COMM_WORLD_SIZE",)),
    Tasks("mpirun", "MV2_COMM_WORLD_RANK", ("MV2_COMM_WORLD_SIZE",)),
    Tasks("mpiexec", "PMI_RANK", ("PMI_SIZE",)),
    Tasks("jsrun", "JSM_NAMESPACE_RANK", ("JSM_NAMESPACE_SIZE",)),
    Tasks("Flux", "FLUX_TASK_RANK", ("FLUX_JOB_SIZE",)),
    Tasks("PALS", "PALS_RANKID", ("PALS_LOCAL_SIZE",)),
    Tasks("the cluster", "PET_NODE_RANK", ("PET_NNODES",)),
)

# Those that tell no number of tasks, or only that of one machine.
_WITHOUT_SIZE = (("PMIx", "PMIX_RANK"), ("PALS", "PALS_RANKID"), ("ALPS", "ALPS_APP_PE"))


def settle_rank(arguments: Sequence[str]) -> None:
    """For the process of a rank: leave in the environment only what the launcher of this rank has set.

    A seat in a world is RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. Without a whole one this is a run of one rank.
    What is dropped is said on stderr. Raises SetupError where it would be one of several runs of one rank.
    """
    env = os.environ
    dropped: list[str] = []
    if any(argument.startswith("--local_rank") for argument in arguments):  # DeepSpeed's; torchrun's are older
        dropped += _drop(env, _ELASTIC, "GROUP_", "ROLE_", *(["LOCAL_WORLD_SIZE"] if "LOCAL_SIZE" in env else []))
    if _has_seat(env):
        if not all(name in env for name in _ELASTIC_SEAT):
            dropped += _drop(env, _ELASTIC)
        elif _is_torchruns(env) and not _answers(env["MASTER_ADDR"], env["MASTER_PORT"]):
            if env["WORLD_SIZE"] != "1":
                raise SetupError(
                    f"TORCHELASTIC_RUN_ID: got {env['TORCHELASTIC_RUN_ID']!r} of a torchrun that no longer answers at "
                    f"{env['MASTER_ADDR']}:{env['MASTER_PORT']}; needs one that runs; if another launcher left the "
                    "variable behind, unset RANK WORLD_SIZE ${!TORCHELASTIC_@}"
                )
            dropped += _drop(env)
    else:
        dropped += _drop(env)
    if dropped:
        print(f"left over by another launcher and ignored: {', '.join(sorted(dropped))}", file=sys.stderr, flush=True)
    if "RANK" not in env:
        refuse_lone_task(nodes=1)


def settle_command() -> None:
    """For a command, which is never a rank: nothing of a launcher around it counts.

    Raises SetupError where torchrun has started it, which is alive and so waits for ranks.
    """
    env = os.environ
    world = env.get("WORLD_SIZE", "1")
    if world != "1" and all(name in env for name in _SEAT):
        if _is_torchruns(env) and _answers(env["MASTER_ADDR"], env["MASTER_PORT"]):
            raise SetupError(
                f"WORLD_SIZE: got {world} of a torchrun that runs; needs a command outside of it, which starts ranks "
                "of its own; try torchrun ... -m trainer.main with the same settings"
            )
        print(
            f"RANK={env['RANK']} and WORLD_SIZE={world} are ignored: a command starts ranks of its own; "
            "what launchers start is `-m trainer.main`",
            file=sys.stderr,
            flush=True,
        )
    _drop(env)


def refuse_lone_task(*, nodes: int) -> None:
    """Raise SetupError where a scheduler has started several tasks that would each be a run of their own.

    `nodes`: launch.nodes. As many tasks are right: each starts the ranks of its node, and they meet.
    """
    found = _tasks_of(os.environ)
    if found is None or found[1] == nodes or (not found[0].sizes and found[1] < nodes):
        return
    tasks, size, shown = found
    this = os.environ.get(tasks.rank, "unknown")
    raise SetupError(
        f"{shown}: got {size} tasks of {tasks.scheduler}, of which each would train alone (this is task {this}); needs "
        "one launcher on each machine, which starts its ranks; try `pointsman slurm --submit SETTINGS`, or with one "
        "task on each of N machines `torchrun --nnodes=N --nproc-per-node=RANKS --rdzv-backend=c10d "
        "--rdzv-endpoint=FIRST_MACHINE:29500 -m trainer.main SETTINGS`; if the variable was left behind, unset it"
    )


def _tasks_of(env: MutableMapping[str, str]) -> tuple[Tasks, int, str] | None:
    """Variables, number and the name that was read, of a scheduler with several tasks."""
    for tasks in _TASKS:
        name = next((name for name in tasks.sizes if name in env), "")
        if tasks.scheduler == "Slurm" and not _in_slurm_step(env):
            continue
        if (size := _largest(env.get(name, ""))) > 1:
            return tasks, size, name
    for scheduler, name in _WITHOUT_SIZE:
        if (rank := _largest(env.get(name, ""))) > 0:
            return Tasks(scheduler, name, ()), rank + 1, name
    return None


def _in_slurm_step(env: MutableMapping[str, str]) -> bool:
    """Whether srun started this process. A batch script, or a shell of salloc, has the numbers of its job alone."""
    step = env.get("SLURM_STEP_ID", env.get("SLURM_STEPID", ""))
    return "SLURM_PROCID" in env and step.isdecimal() and int(step) < _BATCH_STEP


def _has_seat(env: MutableMapping[str, str]) -> bool:
    """Whether the variables name a rank of a world. Raises SetupError for a part of a world of several."""
    wrong = [name for name in _SEAT if name not in env]
    rank, world, port = (env.get(name, "") for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    if not wrong and rank.isdecimal() and world.isdecimal() and port.isdecimal() and int(rank) < int(world):
        return True
    if "RANK" in env and _largest(world) > 1:
        shown = " ".join(f"{name}={env[name]!r}" for name in _SEAT if name in env)
        raise SetupError(
            f"{wrong[0] if wrong else 'RANK'}: got {shown}; needs {', '.join(_SEAT)} of a launcher, with RANK below "
            "WORLD_SIZE; try `pointsman train`, which sets them, or unset RANK WORLD_SIZE if they were left behind"
        )
    return False


def _is_torchruns(env: MutableMapping[str, str]) -> bool:
    """Whether the address of a seat is that of torchrun's own store, which it serves as long as it lives."""
    return all(name in env for name in _ELASTIC_SEAT) and env["TORCHELASTIC_USE_AGENT_STORE"] == "True"


def _drop(env: MutableMapping[str, str], *prefixes: str) -> list[str]:
    """Remove what launchers set for ranks, or of that only what begins so; the names."""
    names = [name for name in env if is_launchers(name) and name.startswith(prefixes or ("",))]
    names = [name for name in names if not name.startswith(OF_TORCHRUN)]  # those are no rank's, but a machine's
    for name in names:
        del env[name]
    return names


def _answers(host: str, port: str) -> bool:
    """Whether somebody listens there; also yes where that cannot be told, as behind a network that is slow."""
    for attempt in range(_STORE_TRIES):
        time.sleep(_STORE_PAUSE_S if attempt else 0.0)
        try:
            socket.create_connection((host, int(port)), timeout=5.0).close()
        except ConnectionRefusedError:
            continue
        except OSError:
            return True
        return True
    return False


def _largest(value: str) -> int:
    """The number, or of a range such as 1:4 the larger one; 0 for anything else."""
    return max((int(part) for part in value.split(":") if part.isdecimal()), default=0)
