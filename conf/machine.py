"""What this machine has, for the settings that follow from it."""

from __future__ import annotations

import os
from pathlib import Path

CPU_RANKS = 2
_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # NVIDIA, NVIDIA under WSL, AMD


def local_ranks(backend: str) -> int:
    """launch.nproc where it is not set: the GPUs of this machine, or `CPU_RANKS` without any or for gloo.

    A power of two, which divides batches, heads and experts: of 3 GPUs 2 are used.
    """
    gpus = 0 if backend == "gloo" else gpus_at_hand()
    return 1 << (gpus.bit_length() - 1) if gpus else CPU_RANKS


def gpus_at_hand() -> int:
    """GPUs that torch can use here; none where DeepSpeed is told to use the CPU.

    Torch takes seconds to import, so it is asked only on a machine with a driver.
    """
    if os.environ.get("DS_ACCELERATOR") == "cpu" or not any(Path(driver).exists() for driver in _DRIVERS):
        return 0
    import torch

    return torch.cuda.device_count()


def available_memory() -> int:
    """Bytes that new processes of this machine (or container) can have."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        rows = (line.split() for line in meminfo.read_text().splitlines())
        found += [1024 * int(row[1]) for row in rows if row[0] == "MemAvailable:"]
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and limit.read_text().strip().isdecimal():
        found.append(int(limit.read_text()) - int(used.read_text()))
    return max(0, min(found))
