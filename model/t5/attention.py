"""Multi-head attention of T5: no scaling of scores, no biases in the linear layers.

Shape suffixes: B batch, L queries, M keys, D d_model, H heads of this tensor rank, K d_kv.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conf.schema import ModelConfig
from model.t5.biased_attention import biased_attention
from model.t5.noise import dropout
from parallel.layers.plain import LayerFactory
from parallel.layers.sharding import ParamSpec
from parallel.rng import Draws


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyValues:
    """Keys and values of one attention layer."""

    keys_BHMK: Tensor
    values_BHMK: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreBias:
    """What is added to attention scores."""

    # Trained, [1, H, L, M]: where it is given apart, attention is `biased_attention`. None: none, or in the mask.
    position_1HLM: Tensor | None
    mask: Tensor | None  # broadcasts to [B, H, L, M]

    def whole(self) -> Tensor | None:
        """Both in one."""
        parts = [part for part in (self.position_1HLM, self.mask) if part is not None]
        return sum(parts[1:], parts[0]) if parts else None


class Attention(nn.Module):
    """Self or cross attention; which of the two is decided by what `keys_values` is given."""

    def __init__(self, cfg: ModelConfig, *, name: str, layers: LayerFactory) -> None:
        super().__init__()
        self.noise_sites = (f"{name}.weights",)
        self.p = cfg.attention_dropout
        self.d_kv = cfg.d_kv
        self.heads = cfg.num_heads // layers.tp_size
        self.first_head = self.heads * layers.tp_rank
        d, inner = cfg.d_model, cfg.num_heads * cfg.d_kv
        # T5 folds the missing 1 / sqrt(d_kv) into the initialisation of q.
        self.q = layers.column_linear(d, inner, ParamSpec(dims=("heads", "embed"), fan_in=d * cfg.d_kv))
        self.k = layers.column_linear(d, inner, ParamSpec(dims=("heads", "embed"), fan_in=d))
        self.v = layers.column_linear(d, inner, ParamSpec(dims=("heads", "embed"), fan_in=d))
        self.o = layers.row_linear(inner, d, ParamSpec(dims=("embed", "heads"), fan_in=inner))

    def keys_values(self, memory_BMD: Tensor) -> KeyValues:
        """Project what is attended to: the sublayer's own input, or the encoder's output."""
        return KeyValues(keys_BHMK=self._split(self.k(memory_BMD)), values_BHMK=self._split(self.v(memory_BMD)))

    def forward(self, x_BLD: Tensor, memory: KeyValues, bias: ScoreBias, noise: Draws | None) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        q_BHLK = self._split(self.q(x_BLD))
        attend = self._fused if noise is None or self.p == 0.0 else self._unfused
        mixed_BHLK = attend(q_BHLK, memory, bias, noise)
        return self.o(mixed_BHLK.transpose(1, 2).flatten(2))

    def _split(self, x_BLI: Tensor) -> Tensor:
        return x_BLI.unflatten(-1, (self.heads, self.d_kv)).transpose(1, 2)

    def _fused(self, q_BHLK: Tensor, memory: KeyValues, bias: ScoreBias, noise: Draws | None) -> Tensor:
        k_BHMK, v_BHMK = memory.keys_BHMK, memory.values_BHMK
        if bias.position_1HLM is not None:
            return biased_attention(q_BHLK, k_BHMK, v_BHMK, bias.position_1HLM, bias.mask)
        return F.scaled_dot_product_attention(q_BHLK, k_BHMK, v_BHMK, attn_mask=bias.mask, scale=1.0)

    def _unfused(self, q_BHLK: Tensor, memory: KeyValues, bias: ScoreBias, noise: Draws | None) -> Tensor:
        # The fused kernels draw dropout from a stream; keyed noise needs the weights themselves.
        wide = torch.promote_types(q_BHLK.dtype, torch.float32)
        scores_BHLM = q_BHLK @ memory.keys_BHMK.transpose(-1, -2)
        added = bias.whole()
        scores_BHLM = (scores_BHLM if added is None else scores_BHLM + added).to(wide)
        weights_BHLM = scores_BHLM.softmax(-1).to(q_BHLK.dtype)
        weights_BHLM = dropout(weights_BHLM, self.p, noise, self.noise_sites[0], (self.first_head, 0, 0))
        return weights_BHLM @ memory.values_BHMK
