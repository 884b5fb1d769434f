"""CPU ranks flush subnormal numbers, which would slow training down many times."""

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
