"""Where a check runs: on the CPU in the ordinary suite, on a GPU by `make test-gpu`."""

from __future__ import annotations

import os

import pytest
import torch

NEEDS_GPU = "no CUDA device on this machine: run `make test-gpu` on one that has a GPU and a CUDA build of torch"
GPU = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason=NEEDS_GPU))
TWO_GPUS = (
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices on this machine"),
)
EVERY_DEVICE = [pytest.param("cpu"), pytest.param("cuda", marks=GPU)]
# In processes of their own, which take seconds to start; on the CPU one such test a file shows that the check works.
SLOW_CPU = pytest.param("cpu", marks=pytest.mark.slow)
ON_GPU = pytest.param("cuda", marks=GPU)


def child_environment() -> dict[str, str]:
    """For processes that train: DeepSpeed chooses its accelerator itself, where the test suite says CPU."""
    dropped = ("DS_ACCELERATOR", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {**kept, "OMP_NUM_THREADS": "1"}
