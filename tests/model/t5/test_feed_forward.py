from __future__ import annotations

import math
from typing import get_args

import pytest
import torch

from conf.schema import Ffn
from model.t5.feed_forward import FeedForward
from parallel.layers.plain import PlainLayers
from tests.model.t5.build import MODEL


def gelu_new(x: float) -> float:
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS = {
    "relu": lambda x: max(0.0, x),
    "gelu": gelu_new,
    "gelu_erf": lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2))),
    "silu": lambda x: x / (1 + math.exp(-x)),
}


@pytest.mark.parametrize("ffn", get_args(Ffn))
def test_every_form(ffn) -> None:
    activation = ACTIVATIONS[ffn.removeprefix("gated_")]
    layer = FeedForward(MODEL, ffn=ffn, layers=PlainLayers()).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    x_D = torch.randn(MODEL.d_model, dtype=torch.float64)
    if ffn.startswith("gated_"):
        pairs = zip(layer.wi_0.weight, layer.wi_1.weight, strict=True)
        hidden = [activation((a @ x_D).item()) * (b @ x_D).item() for a, b in pairs]
    else:
        hidden = [activation((row @ x_D).item()) for row in layer.wi.weight]
    hidden_F = torch.tensor(hidden, dtype=torch.float64)
    assert torch.allclose(layer(x_D[None, None], None)[0, 0], layer.wo.weight @ hidden_F, rtol=0, atol=1e-10)
