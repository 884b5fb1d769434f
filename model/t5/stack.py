"""A stack of T5 blocks with its shared position bias and final norm: the encoder or the decoder.

Shape suffixes: B batch, L length, M encoder length, D d_model, H heads of this tensor rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from conf.derived.layers import Layer
from conf.schema import ModelConfig, MoeConfig
from conf.schema import Stack as StackName
from model.moe.types import LayerRouting, RouteMode
from model.t5.attention import ScoreBias
from model.t5.block import Block, BlockOutput, Memory
from model.t5.cache import LayerCache
from model.t5.noise import dropout
from model.t5.norm import RmsNorm
from model.t5.position import RelativeBias, causal_mask, padding_mask
from parallel.layers.experts import ExpertExchange
from parallel.layers.plain import LayerFactory
from parallel.rng import ModelDraws


@dataclass(frozen=True, kw_only=True, slots=True)
class StackOutput:
    """Output after the final norm, and the routing of the expert layers in order."""

    hidden_BLD: Tensor
    routing: tuple[LayerRouting, ...]


class Stack(nn.Module):
    """Embedding dropout, blocks, final norm, final dropout."""

    def __init__(
        self,
        model: ModelConfig,
        moe: MoeConfig,
        plan: tuple[Layer, ...],
        *,
        name: StackName,
        layers: LayerFactory,
        exchange: ExpertExchange,
        recompute: bool,
    ) -> None:
        super().__init__()
        self.name, self.p, self.recompute = name, model.dropout, recompute
        self.train_block = run_block
        self.relative_bias = RelativeBias(
            buckets=model.relative_buckets,
            max_distance=model.relative_max_distance,
            heads=model.num_heads,
            tp_size=layers.tp_size,
            d_model=model.d_model,
            bidirectional=name == "encoder",
        )
        blocks = [Block(model, moe, layer, layers=layers, exchange=exchange) for layer in plan]
        self.layers = nn.ModuleList(blocks)
        self.block_names = tuple(block.name for block in blocks)
        # Names of all draws by part: the stack's own, then those of each block.
        self.noise_sites = {self.name: ("embedding", "final"), **{block.name: block.noise_sites for block in blocks}}
        self.final_norm = RmsNorm(model.d_model, model.norm_epsilon)

    def forward(
        self,
        x_BLD: Tensor,
        real_BL: Tensor,
        memory: Memory | None = None,
        *,
        mode: RouteMode,
        noise: ModelDraws | None,
        ids_BL: Tensor | None = None,
    ) -> StackOutput:
        """Run embedded tokens [B, L, D] through the stack.

        `real_BL`: tokens that are no padding; they alone take expert slots, and in the encoder they alone are
        attended to. The decoder attends causally, so padding after the targets cannot reach them. `ids_BL`: the tokens
        themselves, for routers that read them.
        """
        length = x_BLD.shape[1]
        bias = self._score_bias(length, real_BL)
        own = None if noise is None else noise.of(self.name)
        x_BLD = dropout(x_BLD, self.p, own, "embedding")
        routing: list[LayerRouting] = []
        for name, block in zip(self.block_names, self.layers, strict=True):
            draws = None if noise is None else noise.of(name)
            out = self._run(block, x_BLD, real_BL, bias, memory, mode=mode, noise=draws, ids_BL=ids_BL)
            x_BLD = out.x_BLD
            if out.routing is not None:
                routing.append(out.routing)
        hidden_BLD = dropout(self.final_norm(x_BLD), self.p, own, "final")
        return StackOutput(hidden_BLD=hidden_BLD, routing=tuple(routing))

    def new_caches(self, memory: Memory, max_length: int) -> tuple[LayerCache, ...]:
        """One empty cache per decoder layer, with the encoder's keys and values computed."""
        cross = [block.cross_attention.keys_values(memory.hidden_BMD) for block in self.layers]  # type: ignore[union-attr]
        return tuple(LayerCache(cross=c, max_length=max_length) for c in cross)

    def step(
        self, x_B1D: Tensor, ids_B1: Tensor, memory: Memory, caches: Sequence[LayerCache], *, mode: RouteMode
    ) -> Tensor:
        """Next position of every row [B, 1, D] -> [B, 1, D], reading and extending `caches`."""
        seen = caches[0].length
        bias = ScoreBias(position_1HLM=None, mask=self.relative_bias(1, seen + 1, first_query=seen))
        real_B1 = torch.ones(x_B1D.shape[:2], dtype=torch.bool, device=x_B1D.device)
        for block, cache in zip(self.layers, caches, strict=True):
            x_B1D = block(x_B1D, real_B1, bias, memory, mode=mode, noise=None, ids_BL=ids_B1, cache=cache).x_BLD
        return self.final_norm(x_B1D)

    def _score_bias(self, length: int, real_BL: Tensor) -> ScoreBias:
        position_1HLM = self.relative_bias(length, length)
        mask = None
        if self.name == "encoder":
            mask = padding_mask(real_BL, position_1HLM.dtype)
        else:
            position_1HLM = position_1HLM + causal_mask(length, position_1HLM.dtype, position_1HLM.device)
        apart = ScoreBias(position_1HLM=position_1HLM, mask=mask)
        # torch's fused attention gives a gradient to what is added to the scores on CUDA, but not on CPU. Where none is
        # wanted it is the faster one everywhere.
        if torch.is_grad_enabled() and position_1HLM.requires_grad and position_1HLM.device.type == "cpu":
            return apart
        return ScoreBias(position_1HLM=None, mask=apart.whole())

    def _run(
        self, block: nn.Module, *tensors: Tensor | ScoreBias | Memory | None, mode: RouteMode, **how: Any
    ) -> BlockOutput:
        """The block, its activations dropped until backward where they are to be recomputed."""
        run = self.train_block if mode == "train" else run_block
        if not (self.recompute and torch.is_grad_enabled()):
            return run(block, *tensors, mode=mode, **how)
        # Noise is keyed, so recomputation repeats it without any generator state to restore.
        return checkpoint(run, block, *tensors, mode=mode, **how, use_reentrant=False, preserve_rng_state=False)  # type: ignore[return-value]


def run_block(block: nn.Module, *tensors: Tensor | ScoreBias | Memory | None, **how: Any) -> BlockOutput:
    """Call a block: what is compiled where blocks are."""
    return block(*tensors, **how)
