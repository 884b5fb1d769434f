from __future__ import annotations

import math

import torch

from model.t5.norm import RmsNorm
from parallel.layers.sharding import spec_of


def test_equals_naive_loop() -> None:
    norm = RmsNorm(5, 1e-3).double()
    torch.nn.init.uniform_(norm.weight)
    x_BLD = torch.randn(2, 3, 5, dtype=torch.float64)
    out_BLD = norm(x_BLD)
    for b in range(2):
        for t in range(3):
            row = x_BLD[b, t].tolist()
            rms = math.sqrt(sum(v * v for v in row) / 5 + 1e-3)
            for d in range(5):
                expected = row[d] / rms * norm.weight[d].item()
                assert math.isclose(out_BLD[b, t, d].item(), expected, rel_tol=1e-12)


def test_statistics_are_fp32_under_bf16() -> None:
    norm = RmsNorm(512, 1e-6)
    torch.nn.init.ones_(norm.weight)
    x_BLD = torch.randn(1, 4, 512).bfloat16()
    assert norm(x_BLD).dtype == torch.bfloat16
    exact_BLD = x_BLD.double() / x_BLD.double().square().mean(-1, keepdim=True).sqrt()
    assert (norm(x_BLD).double() / exact_BLD - 1).abs().max() < 2**-8  # one rounding to bf16, no more


def test_weight_stays_fp32_and_is_not_decayed() -> None:
    spec = spec_of(RmsNorm(4, 1e-6).weight)
    assert spec.keep_fp32
    assert not spec.decay
