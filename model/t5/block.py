"""One T5 block: pre-norm residual sublayers self attention, cross attention (decoder), feed-forward or experts.

Shape suffixes: B batch, L length, M encoder length, D d_model, H heads of this tensor rank.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn

from conf.derived.layers import Layer
from conf.routing.settings import moe_rules
from conf.schema import ModelConfig, MoeConfig
from model.moe.layer import MoeLayer
from model.moe.types import LayerRouting, RouteMode
from model.t5.attention import Attention, ScoreBias
from model.t5.cache import LayerCache
from model.t5.feed_forward import FeedForward
from model.t5.noise import dropout
from model.t5.norm import RmsNorm
from parallel.layers.experts import ExpertExchange
from parallel.layers.plain import LayerFactory
from parallel.rng import Draws


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """The encoder's output as the decoder attends to it."""

    hidden_BMD: Tensor
    mask_B11M: Tensor  # additive: hides padding


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockOutput:
    """Hidden state and, from an expert layer, its routing. Returned, so that recomputation counts it once."""

    x_BLD: Tensor
    routing: LayerRouting | None


class Block(nn.Module):
    """A layer of the encoder or of the decoder; `rules`: its experts', None: a dense feed-forward layer."""

    def __init__(
        self,
        model: ModelConfig,
        moe: MoeConfig,
        layer: Layer,
        *,
        layers: LayerFactory,
        exchange: ExpertExchange,
    ) -> None:
        super().__init__()
        self.name, self.p = layer.name, model.dropout
        self.self_attention_norm = RmsNorm(model.d_model, model.norm_epsilon)
        self.self_attention = Attention(model, name="self_attention", layers=layers)
        self.cross_attention = None
        if "cross" in layer.attention:
            self.cross_attention_norm = RmsNorm(model.d_model, model.norm_epsilon)
            self.cross_attention = Attention(model, name="cross_attention", layers=layers)
        self.ff_norm = RmsNorm(model.d_model, model.norm_epsilon)
        self.is_sparse = layer.experts > 0
        if self.is_sparse:
            rules = moe_rules(replace(moe, num_experts=layer.experts), layer.stack)
            self.ff = MoeLayer(rules, d_model=model.d_model, d_ff=model.d_ff, ffn=layer.feed_forward, exchange=exchange)
        else:
            self.ff = FeedForward(model, ffn=layer.feed_forward, layers=layers)

    @property
    def noise_sites(self) -> tuple[str, ...]:
        """Names of all draws, in this block."""
        parts = [self.self_attention, self.ff] + [self.cross_attention] * (self.cross_attention is not None)
        return ("self_attention", "cross_attention", "ff", *(site for part in parts for site in part.noise_sites))

    def forward(
        self,
        x_BLD: Tensor,
        real_BL: Tensor,
        bias: ScoreBias,
        memory: Memory | None,
        *,
        mode: RouteMode,
        noise: Draws | None,
        ids_BL: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> BlockOutput:
        """[B, L, D] -> [B, L, D]. `real_BL` marks the tokens that may take expert slots, `ids_BL` are their ids.

        With a `cache` the sublayers attend to it: `x_BLD` then holds the next positions only.
        """
        normed_BLD = self.self_attention_norm(x_BLD)
        seen = self.self_attention.keys_values(normed_BLD)
        seen = seen if cache is None else cache.extend(seen)
        x_BLD = x_BLD + self._drop(self.self_attention(normed_BLD, seen, bias, noise), noise, "self_attention")
        if self.cross_attention is not None:
            assert memory is not None, "a decoder block needs the encoder's output"
            normed_BLD = self.cross_attention_norm(x_BLD)
            source = self.cross_attention.keys_values(memory.hidden_BMD) if cache is None else cache.cross
            hidden = ScoreBias(position_1HLM=None, mask=memory.mask_B11M)
            mixed_BLD = self.cross_attention(normed_BLD, source, hidden, noise)
            x_BLD = x_BLD + self._drop(mixed_BLD, noise, "cross_attention")
        normed_BLD = self.ff_norm(x_BLD)
        if self.is_sparse:
            out_BLD, routing = self.ff(normed_BLD, real_BL, mode=mode, noise=noise, ids_BL=ids_BL)
        else:
            out_BLD, routing = self.ff(normed_BLD, noise), None
        return BlockOutput(x_BLD=x_BLD + self._drop(out_BLD, noise, "ff"), routing=routing)

    def _drop(self, x_BLD: Tensor, noise: Draws | None, sublayer: str) -> Tensor:
        return dropout(x_BLD, self.p, noise, sublayer)
