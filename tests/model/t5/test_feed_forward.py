from __future__ import annotations

import math

import pytest
import torch

from model.t5.feed_forward import FeedForward
from parallel.layers.plain import PlainLayers
from tests.model.t5.build import MODEL


def gelu_new(x: float) -> float:
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize(("ffn", "activation"), [("relu", lambda x: max(0.0, x)), ("gelu", gelu_new)])
def test_without_a_gate(ffn, activation) -> None:
    layer = FeedForward(MODEL, ffn=ffn, layers=PlainLayers()).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    x_D = torch.randn(MODEL.d_model, dtype=torch.float64)
    hidden_F = torch.tensor([activation((row @ x_D).item()) for row in layer.wi.weight], dtype=torch.float64)
    assert torch.allclose(layer(x_D[None, None], None)[0, 0], layer.wo.weight @ hidden_F, rtol=0, atol=1e-10)


def test_gated_gelu() -> None:
    layer = FeedForward(MODEL, ffn="gated_gelu", layers=PlainLayers()).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    x_D = torch.randn(MODEL.d_model, dtype=torch.float64)
    pairs = zip(layer.wi_0.weight, layer.wi_1.weight, strict=True)
    hidden_F = torch.tensor([gelu_new((a @ x_D).item()) * (b @ x_D).item() for a, b in pairs], dtype=torch.float64)
    assert torch.allclose(layer(x_D[None, None], None)[0, 0], layer.wo.weight @ hidden_F, rtol=0, atol=1e-10)
