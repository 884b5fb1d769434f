"""The dense feed-forward layers of T5: relu (v1.0), GELU, and gated GELU (v1.1).

Shape suffixes: B batch, L length, D d_model, F columns of d_ff of this tensor rank.
"""

from __future__ import annotations

from torch import Tensor, nn

from conf.schema import ModelConfig
from model.activations import ACTIVATIONS
from model.t5.noise import dropout
from parallel.layers.plain import LayerFactory
from parallel.layers.sharding import ParamSpec
from parallel.rng import NoiseKey


class PlainFeedForward(nn.Module):
    """wi, activation, dropout, wo."""

    def __init__(self, cfg: ModelConfig, *, name: str, layers: LayerFactory) -> None:
        super().__init__()
        self.site, self.p = f"{name}.hidden", cfg.dropout
        self.first_column = cfg.d_ff // layers.tp_size * layers.tp_rank
        self.activation = ACTIVATIONS[cfg.ffn]
        self.wi = layers.column_linear(cfg.d_model, cfg.d_ff, _in_spec(cfg))
        self.wo = layers.row_linear(cfg.d_ff, cfg.d_model, _out_spec(cfg))

    def forward(self, x_BLD: Tensor, noise: NoiseKey | None) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        hidden_BLF = self.activation(self.wi(x_BLD))
        return self.wo(dropout(hidden_BLF, self.p, noise, self.site, (0, self.first_column)))


class GatedGeluFeedForward(nn.Module):
    """gelu(wi_0) * wi_1, dropout, wo."""

    def __init__(self, cfg: ModelConfig, *, name: str, layers: LayerFactory) -> None:
        super().__init__()
        self.site, self.p = f"{name}.hidden", cfg.dropout
        self.first_column = cfg.d_ff // layers.tp_size * layers.tp_rank
        self.activation = ACTIVATIONS[cfg.ffn]
        self.wi_0 = layers.column_linear(cfg.d_model, cfg.d_ff, _in_spec(cfg))
        self.wi_1 = layers.column_linear(cfg.d_model, cfg.d_ff, _in_spec(cfg))
        self.wo = layers.row_linear(cfg.d_ff, cfg.d_model, _out_spec(cfg))

    def forward(self, x_BLD: Tensor, noise: NoiseKey | None) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        hidden_BLF = self.activation(self.wi_0(x_BLD)) * self.wi_1(x_BLD)
        return self.wo(dropout(hidden_BLF, self.p, noise, self.site, (0, self.first_column)))


FEED_FORWARD = {"relu": PlainFeedForward, "gelu": PlainFeedForward, "gated_gelu": GatedGeluFeedForward}


def _in_spec(cfg: ModelConfig) -> ParamSpec:
    return ParamSpec(dims=("ff", "embed"), fan_in=cfg.d_model)


def _out_spec(cfg: ModelConfig) -> ParamSpec:
    return ParamSpec(dims=("embed", "ff"), fan_in=cfg.d_ff)
