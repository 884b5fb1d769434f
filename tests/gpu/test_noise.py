"""Keyed noise is integer arithmetic: a GPU draws the CPU's numbers, bit for bit."""

import pytest
import torch

from parallel.rng import Draws, NoiseKey, NoiseSites, keyed_dropout, keyed_uniform
from tests.gpu.devices import GPU

RANGES = ((3, 17), (250, 40))


def draws(device: str) -> Draws:
    rows = torch.tensor([0, 1, 77, 2**31, 2**40 + 5], device=device)
    key = NoiseKey(seed=2**35 + 1, step=12345, rows_B=rows)
    return NoiseSites({"encoder.3": ("jitter", "dropout")}).draws(key).of("encoder.3")


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=GPU)])
def test_uniforms_and_dropout_are_those_of_the_cpu(device):
    expected = keyed_uniform(draws("cpu"), "jitter", RANGES)
    assert torch.equal(keyed_uniform(draws(device), "jitter", RANGES).cpu(), expected)
    assert 0.45 < expected.mean() < 0.55
    x = torch.randn(5, 17, 40)
    for dtype in (torch.float32, torch.bfloat16):
        on_cpu = keyed_dropout(x.to(dtype), 0.1, draws("cpu"), "dropout", RANGES)
        on_gpu = keyed_dropout(x.to(device, dtype), 0.1, draws(device), "dropout", RANGES)
        assert torch.equal(on_gpu.cpu(), on_cpu)
