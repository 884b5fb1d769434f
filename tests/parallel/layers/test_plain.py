"""The one-process factory: shapes, tags and values that the tensor-parallel one is compared with."""

from __future__ import annotations

import math

import torch

from parallel.layers.plain import PlainLayers
from parallel.layers.sharding import ParamSpec, spec_of

UP = ParamSpec(dims=("ff", "embed"), fan_in=3)
VOCAB = ParamSpec(dims=("vocab", "embed"))


def test_layers_are_tagged_have_no_bias_and_build_on_meta():
    with torch.device("meta"):
        layers = [
            PlainLayers().column_linear(3, 5, UP),
            PlainLayers().row_linear(3, 5, UP),
            PlainLayers().embedding(5, 3, VOCAB),
        ]
    for layer, spec in zip(layers, (UP, UP, VOCAB), strict=True):
        assert [name for name, _ in layer.named_parameters()] == ["weight"]
        assert layer.weight.is_meta
        assert tuple(layer.weight.shape) == (5, 3)
        assert spec_of(layer.weight) is spec


def test_layers_compute_what_they_say():
    factory = PlainLayers()
    linear, embedding = factory.column_linear(3, 2, UP), factory.embedding(4, 3, VOCAB)
    linear.weight.data = torch.tensor([[1.0, 2, 3], [4, 5, 6]])
    embedding.weight.data = torch.arange(12.0).view(4, 3)
    assert linear(torch.tensor([[[1.0, 0, 1]]])).tolist() == [[[4, 10]]]
    assert embedding(torch.tensor([[2, 0]])).tolist() == [[[6, 7, 8], [0, 1, 2]]]
    assert factory.tied_logits(torch.tensor([[[1.0, 0, 0]]]), embedding.weight).tolist() == [[[0, 3, 6, 9]]]
    assert factory.gather_logits(embedding.weight) is embedding.weight


def test_cross_entropy_is_minus_log_probability_in_fp32():
    logits = torch.tensor([[[0.0, math.log(3), -math.inf]]], dtype=torch.bfloat16, requires_grad=True)
    loss = PlainLayers().cross_entropy(logits, torch.tensor([[1]]))
    assert loss.dtype == torch.float32
    assert loss.shape == (1, 1)
    assert abs(loss.item() + math.log(3 / 4)) < 2e-3  # log 3 in bf16
    loss.sum().backward()
    assert torch.allclose(logits.grad.float(), torch.tensor([[[0.25, -0.25, 0.0]]]), atol=2e-3)
    assert PlainLayers().cross_entropy(logits.detach().double(), torch.tensor([[1]])).dtype == torch.float64
