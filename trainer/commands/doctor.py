"""`pointsman doctor`: versions, devices, backends, and how fast ranks on this machine exchange expert buffers."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import statistics
import time

import click

from conf.errors import RanksFailed
from launch.commands.kinds import define
from launch.commands.parameters import PROCESSES, option
from launch.ranks.allocator import allocator_line
from launch.ranks.child import Seat
from launch.ranks.environment import clean_environment
from launch.ranks.pool import RankPool

_PACKAGES = (
    "torch",
    "deepspeed",
    "megatron-core",
    "datasets",
    "sentencepiece",
    "wandb",
    "hydra-core",
    "safetensors",
    "numpy",
)
_EXCHANGE_S = 300.0
_ROUNDS = 7


@define()
@option("--ranks", "--nproc", type=PROCESSES, default=2, help="ranks of the all-to-all check")
@option("--mib", type=click.IntRange(1, 2**20), default=16, help="buffer of one rank in MiB")
@option("--no-exchange", is_flag=True, help="skip the all-to-all check")
def command(ranks: int, mib: int, no_exchange: bool) -> int:
    """Show versions, devices and backends, and how fast ranks on this machine exchange expert buffers.

    Exit code 1 when the exchange fails.
    """
    for line in (*version_lines(), *device_lines(), *tool_lines()):
        print(line)
    if no_exchange:
        return 0
    lines = exchange_lines(ranks, mib)
    print("\n".join(lines))
    return 1 if any("FAILED" in line for line in lines) else 0


def version_lines() -> list[str]:
    """Installed versions of what Pointsman stands on."""
    lines = [f"python          {platform.python_version()} on {platform.platform()}"]
    for package in ("pointsman", *_PACKAGES):
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            version = "MISSING: run make setup"
        lines.append(f"{package:<15} {version}")
    return lines


def device_lines() -> list[str]:
    """Processors, accelerators and the communication backends that can serve them."""
    import torch
    import torch.distributed as dist

    lines = [f"cpu             {os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"]
    lines.append(f"memory          {allocator_line(os.environ)}")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        lines.append(f"gpu {index}           {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    if torch.cuda.device_count() == 0:
        lines.append("gpu             none: runs use gloo on the CPU")
    available = {"gloo": dist.is_gloo_available(), "nccl": dist.is_nccl_available(), "mpi": dist.is_mpi_available()}
    lines.append("backends        " + ", ".join(name for name, there in available.items() if there))
    return lines


def tool_lines() -> list[str]:
    """Programs that some ways of launching need."""
    tools = {"gcc": "DeepSpeed and Triton compile with it", "sbatch": "Slurm", "nvidia-smi": "NVIDIA driver"}
    return [f"{name:<15} {shutil.which(name) or f'not found ({what})'}" for name, what in tools.items()]


def exchange_lines(nproc: int, mib: int) -> list[str]:
    """Start ranks and time an all-to-all; a failure is reported in words, not raised.

    On the GPUs where there is one for each rank, else on the CPU; the line says which.
    """
    import torch

    backend = "nccl" if torch.cuda.device_count() >= nproc else "gloo"
    environment = clean_environment(os.environ) | {"OMP_NUM_THREADS": "1"}
    try:
        with RankPool(nproc, environment=environment, preload=(exchange.__module__,), start="spawn") as pool:
            device, seconds = pool.run(exchange, mib, backend, timeout_s=_EXCHANGE_S)[0]
    except RanksFailed as error:
        return [f"all-to-all      FAILED: {error}", "try --ranks 2 --mib 1, or --no-exchange"]
    leaving = mib * (nproc - 1) / nproc
    return [
        f"all-to-all      {nproc} ranks on {device}, {mib} MiB each: {seconds * 1e3:.1f} ms, "
        f"{leaving / 1024 / seconds:.2f} GiB/s out of each rank"
    ]


def exchange(seat: Seat, mib: int, backend: str) -> tuple[str, float]:
    """One rank of the check: kind of device, and median seconds of an all-to-all of `mib` MiB per rank.

    Asserts that every block came from the right rank.
    """
    import torch

    from conf.compose import compose
    from parallel.mesh import collectives
    from parallel.mesh.groups import meeting
    from trainer.device import local_device

    # A dense model and one sequence per rank: no number of ranks is refused for what the check does not use.
    settings = ["parallel=data", "moe=dense", f"train.global_batch={seat.world}", f"parallel.backend={backend}"]
    cfg = compose(settings, world=(seat.world, seat.world))
    device = local_device(cfg)
    with meeting(cfg.parallel, **seat._asdict()) as mesh:
        sent = torch.full((seat.world, mib * 2**20 // 4 // seat.world), float(seat.rank), device=device)
        received = collectives.all_to_all(sent, mesh.world)
        expected = torch.arange(seat.world, dtype=torch.float32, device=device)
        assert torch.equal(received[:, 0], expected), f"rank {seat.rank} received {received[:, 0].tolist()}"
        seconds: list[float] = []
        for _ in range(_ROUNDS):
            collectives.barrier(mesh.world)
            began = time.perf_counter()
            collectives.all_to_all(sent, mesh.world)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - began)
        return device.type, statistics.median(seconds)
