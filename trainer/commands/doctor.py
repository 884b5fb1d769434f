"""`pointsman doctor`: versions, devices, backends, and how fast ranks on this machine exchange expert buffers."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys

from launch.commands.kinds import define
from launch.commands.parameters import COUNT, option

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


_EXCHANGE_S = 300


@define()
@option("--ranks", "--nproc", type=COUNT, default=2, help="ranks of the all-to-all check")
@option("--mib", type=COUNT, default=16, help="buffer of one rank in MiB")
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
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={nproc}"]
    command += ["-m", "trainer.commands.exchange_check", str(mib), backend]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_EXCHANGE_S, check=False
        )
    except subprocess.TimeoutExpired:
        return [f"all-to-all      FAILED: not done after {_EXCHANGE_S} s; try --ranks 2 --mib 1"]
    lines = [line for line in done.stdout.splitlines() if line.startswith("all-to-all")]
    if done.returncode == 0 and lines:
        return lines
    return [f"all-to-all      FAILED with exit code {done.returncode}:", *done.stderr.strip().splitlines()[-15:]]
