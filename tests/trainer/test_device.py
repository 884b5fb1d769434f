"""CPU ranks flush subnormal numbers, which would slow training down many times; accelerators repeat their sums."""

import os
import subprocess
import sys

CODE = """
import torch
from conf.compose import compose
from trainer.device import local_device
tiny = torch.tensor([1e-39])
assert (tiny * 0.5).item() != 0.0, "this processor flushes anyway"
print(local_device(compose(["parallel.backend=gloo"])), (tiny * 0.5).item())
"""


def test_cpu_ranks_flush_subnormal_numbers():
    # A process of its own: the setting is the processor's and would leak into other tests.
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["cpu", "0.0"]


REPEATABLE = """
import os, torch
from trainer.device import make_repeatable
make_repeatable(torch.device("cpu"))
assert not torch.are_deterministic_algorithms_enabled()
make_repeatable(torch.device("cuda", 0))
assert torch.are_deterministic_algorithms_enabled()
assert not torch.is_deterministic_algorithms_warn_only_enabled()
print(os.environ["CUBLAS_WORKSPACE_CONFIG"], torch.utils.deterministic.fill_uninitialized_memory)
"""


def test_training_on_an_accelerator_is_repeatable():
    # What the switches do shows on a GPU only (tests/gpu); that they are set shows here.
    done = subprocess.run([sys.executable, "-c", REPEATABLE], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [":4096:8", "False"]


PRECISION = """
import torch
from conf.compose import compose
from trainer.device import local_device
before = torch.get_float32_matmul_precision()
local_device(compose([]))
print(before, torch.get_float32_matmul_precision())
"""


def test_a_containers_default_does_not_take_bits_from_fp32():
    environment = {**os.environ, "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PRECISION], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["high", "highest"]
