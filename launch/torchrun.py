"""The command and environment that start this machine's ranks through torch's own launcher.

Pure arithmetic on the configuration, shared by local runs (`launch.local`) and Slurm scripts (`launch.slurm`). The
process that runs is `launch.agent`, which takes torchrun's arguments; the same arguments after `torchrun` do the same.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from conf.errors import ConfigError
from conf.schema import LaunchConfig
from launch.ranks.allocator import allocator_environment
from launch.ranks.environment import clean_environment

TRAINER = "trainer.main"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendezvous:
    """Where the agents of all nodes meet; `endpoint` and `run_id` are the same on every node."""

    endpoint: str  # host:port, or shell text that becomes one
    run_id: str


def torchrun_arguments(
    launch: LaunchConfig,
    overrides: Sequence[str],
    *,
    rendezvous: Rendezvous | None,
    log_dir: str,
    module: str = TRAINER,
) -> list[str]:
    """Arguments of torchrun for one node.

    Local rank 0 keeps this process's own streams, a terminal included; what the others print goes to
    `log_dir/*/attempt_*/<local rank>/{stdout,stderr}.log`.
    """
    arguments = [f"--nnodes={launch.nodes}", f"--nproc-per-node={launch.nproc}"]
    if rendezvous is None:
        arguments.append("--standalone")
    else:
        arguments += ["--rdzv-backend=c10d", f"--rdzv-endpoint={rendezvous.endpoint}"]
        arguments.append(f"--rdzv-id={rendezvous.run_id}")
    arguments += [f"--max-restarts={launch.max_restarts}", f"--log-dir={log_dir}"]
    if launch.nproc > 1:
        arguments.append("--redirects=" + ",".join(f"{rank}:3" for rank in range(1, launch.nproc)))
    return [*arguments, "-m", module, *overrides]


def rendezvous_of(launch: LaunchConfig, run_name: str | None) -> Rendezvous | None:
    """The rendezvous the configuration names; `None` on one node without an endpoint, where a free port will do.

    Raises:
        ConfigError: several nodes and no endpoint.
    """
    if launch.rdzv_endpoint is not None:
        return Rendezvous(endpoint=launch.rdzv_endpoint, run_id=run_name or "pointsman")
    if launch.nodes > 1:
        raise ConfigError(
            "launch.rdzv_endpoint",
            got=None,
            needs=f"host:port of one of the {launch.nodes} nodes, the same on all of them",
            hint="launch.rdzv_endpoint=first-node:29500, or `pointsman slurm`, which fills it in",
        )
    return None


def threads_per_rank(launch: LaunchConfig, environment: Mapping[str, str]) -> int:
    """CPU threads of one rank: as configured, else as OMP_NUM_THREADS says, else an even share of the cores."""
    if launch.threads_per_rank is not None:
        return launch.threads_per_rank
    if environment.get("OMP_NUM_THREADS", "").isdecimal():
        return int(environment["OMP_NUM_THREADS"])
    return max(1, len(os.sched_getaffinity(0)) // launch.nproc)


def rank_environment(launch: LaunchConfig, environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` as the agent and its ranks need it."""
    env = clean_environment(environment) | allocator_environment(environment)
    env["OMP_NUM_THREADS"] = str(threads_per_rank(launch, environment))
    if launch.max_restarts > 0:
        # Restarted ranks otherwise read the addresses of the dead ones from the agent's store.
        env["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    return env
