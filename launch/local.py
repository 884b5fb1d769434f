"""Starts the ranks of this machine by becoming their launcher; for a command that makes runs, in the background.

The process replaces itself (exec): with one rank by the trainer, with several by `launch.agent`. So no process stands
between the user and the run: the terminal, Ctrl-C, SIGTERM and the exit code are the run's own.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from conf.errors import ConfigError
from conf.safety.writing import append_to
from conf.schema import LaunchConfig, RunConfig
from launch.memory import check_memory
from launch.naming import with_name
from launch.ranks.bound import BOUND_VARIABLE
from launch.ranks.environment import clean_environment
from launch.ranks.surroundings import refuse_lone_task
from launch.torchrun import TRAINER, rank_environment, rendezvous_of, torchrun_arguments

LOG_DIR_VARIABLE = "POINTSMAN_RANK_LOGS"  # a folder of ours, which the agent removes after success


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """A process to become."""

    command: tuple[str, ...]
    environment: dict[str, str]


def plan(
    launch: LaunchConfig,
    overrides: Sequence[str],
    *,
    run_name: str | None,
    environment: Mapping[str, str],
    module: str = TRAINER,
) -> Start:
    """How to start this node's ranks. Creates nothing but, for several ranks, a temporary folder for their output."""
    env = rank_environment(launch, environment)
    rendezvous = rendezvous_of(launch, run_name)
    if launch.nproc == 1 and launch.max_restarts == 0 and rendezvous is None:
        alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        return Start(command=(sys.executable, "-m", module, *overrides), environment={**env, **alone, **meeting})
    log_dir = tempfile.mkdtemp(prefix="pointsman-ranks-")
    arguments = torchrun_arguments(launch, overrides, rendezvous=rendezvous, log_dir=log_dir, module=module)
    return Start(
        command=(sys.executable, "-m", "launch.agent", *arguments), environment={**env, LOG_DIR_VARIABLE: log_dir}
    )


def start(cfg: RunConfig, overrides: Sequence[str]) -> NoReturn:
    """Become the ranks of this machine.

    Raises:
        SetupError: a scheduler has started several tasks that would each be a run.
        ConfigError: a file it names is not there, or it restarts on several nodes without a name, by which restarted
            ranks would find the run.
    """
    from conf.reading.convert import raise_all
    from conf.rules.files import check_files

    refuse_lone_task(nodes=cfg.launch.nodes)
    raise_all([*check_files(cfg)])
    check_memory(cfg)
    if cfg.launch.max_restarts:
        if cfg.name is None and cfg.launch.nodes > 1:
            needs = "a name, the same on every node, by which restarted ranks find the run's checkpoints"
            raise ConfigError("name", got=None, needs=needs, hint="name=first")
        cfg, overrides = with_name(overrides, cfg)
    become(plan(cfg.launch, overrides, run_name=cfg.name, environment=os.environ))


def become(start: Start) -> NoReturn:
    """Replace this process by `start`."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(start.command[0], list(start.command), start.environment)


def train_in_background(overrides: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """`pointsman train` in a process of its own that appends what it says to `log` and ends with this one."""
    environment = clean_environment(os.environ) | {BOUND_VARIABLE: str(os.getpid())}
    command = [sys.executable, "-m", "launch.cli", "train", *overrides]
    log.parent.mkdir(parents=True, exist_ok=True)
    with append_to(log) as out:
        # A session of its own: Ctrl-C reaches this process alone, which then asks its runs to save, once.
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )


def free_port() -> int:
    """A TCP port nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
