"""What a result was measured on and with: processor, accelerator, versions, commit. No host names and no paths."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import torch

from launch.identity import ROOT


def machine_line(device: torch.device, threads: int) -> str:
    """Processor, cores, accelerator, threads and load."""
    parts = [f"{processor()}, {os.cpu_count()} cores", f"{threads} thread(s) a rank"]
    if device.type == "cuda":
        parts.append(f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(device)}")
        parts.append(f"fp32 matrix products {torch.get_float32_matmul_precision()}")
    return ", ".join([*parts, f"load {os.getloadavg()[0]:.1f} at the start"])


def software_line() -> str:
    """Interpreter, torch, CUDA."""
    cuda = f", CUDA {torch.version.cuda}" if torch.version.cuda else ""
    return f"Python {platform.python_version()}, torch {torch.__version__}{cuda}"


def commit() -> str:
    """The commit of the code that runs, with a mark if tracked files differ from it; says so where there is none."""
    if not (ROOT / ".git").exists():
        return "unknown: not run from a git checkout"
    head = _git("rev-parse", "--short=10", "HEAD")
    if head is None:
        return "unknown: git does not answer"
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return f"{head} with uncommitted changes" if changed else head


def processor() -> str:
    """The processor's name as the kernel tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
