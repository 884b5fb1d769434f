"""Keyed noise is integer arithmetic: a GPU draws the CPU's numbers, bit for bit."""

import pytest
import torch

from parallel.rng import NoiseKey, keyed_dropout, keyed_uniform
from tests.gpu.devices import GPU

RANGES = ((3, 17), (250, 40))


def key(device: str) -> NoiseKey:
    rows = torch.tensor([0, 1, 77, 2**31, 2**40 + 5], device=device)
    return NoiseKey(seed=2**35 + 1, step=12345, rows_B=rows)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=GPU)])
def test_uniforms_and_dropout_are_those_of_the_cpu(device):
    expected = keyed_uniform(key("cpu"), "encoder.3/jitter", RANGES)
    assert torch.equal(keyed_uniform(key(device), "encoder.3/jitter", RANGES).cpu(), expected)
    assert 0.45 < expected.mean() < 0.55
    x = torch.randn(5, 17, 40)
    for dtype in (torch.float32, torch.bfloat16):
        on_cpu = keyed_dropout(x.to(dtype), 0.1, key("cpu"), "site", RANGES)
        on_gpu = keyed_dropout(x.to(device, dtype), 0.1, key(device), "site", RANGES)
        assert torch.equal(on_gpu.cpu(), on_cpu)
