"""One process of the pool: waits for a layout, joins its ranks, runs it, says what it found, leaves them again."""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.process import die_with_parent

if TYPE_CHECKING:
    from measure.verify.run_layout import Damage


@dataclass(frozen=True, kw_only=True, slots=True)
class Seat:
    """A place in the pool; plain types, because it is handed to a new process."""

    rank: int
    log: str  # file for everything the process prints
    stacks: str  # file for its stacks, when it is asked for them
    environment: dict[str, str]


def serve(seat: Seat, line: Connection, damage: Damage | None) -> None:
    """Answer messages until the line is closed. Body of a process."""
    die_with_parent(signal.SIGKILL)
    _redirect(Path(seat.log))
    os.environ.clear()
    os.environ.update(seat.environment)
    warnings.filterwarnings("ignore")
    stacks = open(seat.stacks, "w")  # noqa: SIM115 - faulthandler needs it as long as the process lives
    faulthandler.enable(stacks, all_threads=True)
    faulthandler.register(signal.SIGUSR1, stacks, all_threads=True)
    _warm_up()
    line.send_bytes(json.dumps({"ready": True}).encode())
    while True:
        try:
            message = json.loads(line.recv_bytes())
        except EOFError:
            return
        line.send_bytes(json.dumps(_answer(seat.rank, message, damage)).encode())


def _warm_up() -> None:
    """Import what the first layout would import, outside its time limit."""
    import torch

    import measure.verify.run_layout  # noqa: F401 - imported for its effect

    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))


def _answer(rank: int, message: Mapping[str, Any], damage: Damage | None) -> dict[str, Any]:
    """The findings, or what went wrong."""
    try:
        return {"findings": _run(rank, message, damage)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}


def _run(rank: int, message: Mapping[str, Any], damage: Damage | None) -> dict[str, Any]:
    from measure.verify.run_layout import Task, run_layout
    from parallel.engine.expert_groups import release_groups
    from parallel.mesh import collectives
    from parallel.mesh.groups import destroy_groups, init_groups, join_world
    from trainer.device import local_device, make_repeatable

    task = Task.from_json(message["task"])
    world = task.cfg.launch.nproc
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(world))
    device = local_device(task.cfg)
    make_repeatable(device)  # as in training: a replay must be the same run
    join_world(task.cfg.parallel, rank=rank, world=world, store=message["store"])
    try:
        mesh = init_groups(task.cfg.parallel)
        findings = run_layout(task, mesh, device, damage).to_json()
        collectives.barrier(mesh.control, what="end of a layout")
        return findings
    finally:
        gc.collect()  # engines hold cycles, and their memory must not stay for the next layout
        release_groups()
        destroy_groups()


def _redirect(path: Path) -> None:
    """Send what the process prints, C++ warnings included, to a file: the terminal is for the table."""
    sys.stdout.flush()
    sys.stderr.flush()
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
