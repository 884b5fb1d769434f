"""The dense feed-forward layer of T5 in any form of `model.activations`.

Shape suffixes: B batch, L length, D d_model, F columns of d_ff of this tensor rank.
"""

from __future__ import annotations

from torch import Tensor, nn

from conf.schema import Ffn, ModelConfig
from model.activations import FORMS
from model.t5.noise import dropout
from parallel.layers.plain import LayerFactory
from parallel.layers.sharding import ParamSpec
from parallel.rng import Draws


class FeedForward(nn.Module):
    """Matrices into d_ff, what joins them, dropout, wo."""

    noise_sites = ("ff.hidden",)

    def __init__(self, cfg: ModelConfig, *, ffn: Ffn, layers: LayerFactory) -> None:
        super().__init__()
        self.p = cfg.dropout
        self.first_column = cfg.d_ff // layers.tp_size * layers.tp_rank
        self.form = FORMS[ffn]
        for weight in self.form.into:
            spec = ParamSpec(dims=("ff", "embed"), fan_in=cfg.d_model)
            self.add_module(weight, layers.column_linear(cfg.d_model, cfg.d_ff, spec))
        self.wo = layers.row_linear(cfg.d_ff, cfg.d_model, ParamSpec(dims=("embed", "ff"), fan_in=cfg.d_ff))

    def forward(self, x_BLD: Tensor, noise: Draws | None) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        hidden_BLF = self.form.join(*(self.get_submodule(weight)(x_BLD) for weight in self.form.into))
        return self.wo(dropout(hidden_BLF, self.p, noise, "ff.hidden", (0, self.first_column)))
