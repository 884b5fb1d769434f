from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.t5.attention import Attention, ScoreBias
from model.t5.position import MASKED
from parallel.layers.plain import PlainLayers
from tests.model.t5.build import MODEL


def make_attention(dropout: float = 0.0) -> Attention:
    layer = Attention(replace(MODEL, attention_dropout=dropout), name="test", layers=PlainLayers()).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return layer


def masked(bias: Tensor) -> ScoreBias:
    return ScoreBias(position_1HLM=None, mask=bias)


def naive(layer: Attention, x_LD: Tensor, memory_MD: Tensor, bias_HLM: Tensor, weight_of=None) -> Tensor:
    """One sequence, one head and one query at a time; no scaling by sqrt(d_kv)."""
    rows = []
    for i, x_D in enumerate(x_LD):
        heads = []
        for h in range(MODEL.num_heads):
            part = slice(h * MODEL.d_kv, (h + 1) * MODEL.d_kv)
            q_K = layer.q.weight[part] @ x_D
            scores = [q_K @ (layer.k.weight[part] @ m_D) + bias_HLM[h, i, j] for j, m_D in enumerate(memory_MD)]
            weights_M = torch.stack(scores).softmax(0)
            if weight_of is not None:
                weights_M = weight_of(weights_M, h, i)
            heads.append(sum(w * (layer.v.weight[part] @ m_D) for w, m_D in zip(weights_M, memory_MD, strict=True)))
        rows.append(layer.o.weight @ torch.cat(heads))
    return torch.stack(rows)


def random_inputs() -> tuple[Tensor, Tensor, Tensor]:
    x_BLD = torch.randn(2, 3, MODEL.d_model, dtype=torch.float64)
    memory_BMD = torch.randn(2, 5, MODEL.d_model, dtype=torch.float64)
    bias_BHLM = torch.randn(2, MODEL.num_heads, 3, 5, dtype=torch.float64)
    bias_BHLM[1, :, :, 3:] = MASKED
    return x_BLD, memory_BMD, bias_BHLM


def test_equals_naive_loops() -> None:
    layer = make_attention()
    x_BLD, memory_BMD, bias_BHLM = random_inputs()
    out_BLD = layer(x_BLD, layer.keys_values(memory_BMD), masked(bias_BHLM), None)
    for b in range(2):
        assert torch.allclose(out_BLD[b], naive(layer, x_BLD[b], memory_BMD[b], bias_BHLM[b]), rtol=0, atol=1e-12)


def test_masked_keys_do_not_matter() -> None:
    layer = make_attention()
    x_BLD, memory_BMD, bias_BHLM = random_inputs()
    before_BLD = layer(x_BLD, layer.keys_values(memory_BMD), masked(bias_BHLM), None)
    memory_BMD[1, 3:] = 1e3
    after_BLD = layer(x_BLD, layer.keys_values(memory_BMD), masked(bias_BHLM), None)
    assert torch.equal(before_BLD[1], after_BLD[1])


def test_row_without_any_key_is_finite() -> None:
    layer = make_attention().bfloat16()
    x_BLD, memory_BMD, bias_BHLM = (t.bfloat16() for t in random_inputs())
    out_BLD = layer(x_BLD, layer.keys_values(memory_BMD), masked(torch.full_like(bias_BHLM, MASKED)), None)
    assert out_BLD.isfinite().all()


def test_gradients_reach_the_bias() -> None:
    layer = make_attention()
    x_BLD, memory_BMD, bias_BHLM = random_inputs()
    bias_BHLM.requires_grad_(True)
    layer(x_BLD, layer.keys_values(memory_BMD), masked(bias_BHLM), None).square().sum().backward()
    fused = bias_BHLM.grad
    bias_BHLM.grad = None
    total = sum(naive(layer, x_BLD[b], memory_BMD[b], bias_BHLM[b]).square().sum() for b in range(2))
    total.backward()
    assert fused is not None
    assert torch.allclose(fused, bias_BHLM.grad, rtol=0, atol=1e-11)


def test_dropout_on_weights_takes_the_keyed_mask() -> None:
    rng = pytest.importorskip("parallel.rng")
    layer = make_attention(dropout=0.4)
    x_BLD, memory_BMD, bias_BHLM = random_inputs()
    key = rng.NoiseKey(seed=3, step=5, rows_B=torch.tensor([7, 9]))
    noise = rng.NoiseSites({"encoder.0": layer.noise_sites}).draws(key).of("encoder.0")
    out_BLD = layer(x_BLD, layer.keys_values(memory_BMD), masked(bias_BHLM), noise)
    ones = torch.ones(2, MODEL.num_heads, 3, 5, dtype=torch.float64)
    mask_BHLM = rng.keyed_dropout(ones, 0.4, noise, "test.weights", ((0, MODEL.num_heads), (0, 3), (0, 5)))
    assert (mask_BHLM == 0).any()
    for b in range(2):
        expected_LD = naive(
            layer, x_BLD[b], memory_BMD[b], bias_BHLM[b], lambda w_M, h, i, b=b: w_M * mask_BHLM[b, h, i]
        )
        assert torch.allclose(out_BLD[b], expected_LD, rtol=0, atol=1e-12)
