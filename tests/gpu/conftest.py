"""fp32 stays fp32 and sums repeat, as in a training run; put back afterwards: both are settings of the process."""

from __future__ import annotations

import os

import pytest
import torch

from trainer.device import make_repeatable


@pytest.fixture(autouse=True)
def exact_arithmetic():
    if not torch.cuda.is_available():
        yield
        return
    precision, repeatable = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    torch.set_float32_matmul_precision("highest")
    make_repeatable(torch.device("cuda"))
    yield
    torch.set_float32_matmul_precision(precision)
    torch.use_deterministic_algorithms(repeatable)
    if workspace is None:
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
