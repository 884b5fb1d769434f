"""The Switch Transformer: T5's encoder-decoder with expert banks for some feed-forward layers.

Shape suffixes: B batch, L encoder length, T decoder length, D d_model, V vocabulary columns of this tensor rank,
R rows of a decoding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from conf.derived.estimate import padded_vocab_size
from conf.derived.layers import stacks
from conf.schema import ModelConfig, MoeConfig
from conf.schema import Stack as StackName
from model.contract import PAD, Decoding, Generative, ModelOutput
from model.moe.layer import MoeLayer
from model.moe.types import RouteMode
from model.t5.block import Memory
from model.t5.position import padding_mask
from model.t5.stack import Stack, StackOutput, run_block
from parallel.layers.experts import ExpertExchange
from parallel.layers.plain import LayerFactory
from parallel.layers.sharding import ParamSpec
from parallel.rng import ModelDraws, NoiseKey, NoiseSites


class SwitchTransformer(Generative):
    """Encoder, decoder, an embedding for both or one each, tied or own output matrix."""

    def __init__(
        self,
        model: ModelConfig,
        moe: MoeConfig,
        *,
        layers: LayerFactory,
        exchange: ExpertExchange,
        recompute: bool = False,
    ) -> None:
        """`layers` and `exchange` hold all parallelism; `recompute` drops block activations until backward."""
        super().__init__()
        self.config, self.factory = model, layers
        rows = padded_vocab_size(model.vocab_size)
        embedding = ParamSpec(dims=("vocab", "embed"), init="embedding")
        self.shared = self.encoder_embedding = self.decoder_embedding = None
        if model.share_embeddings:
            self.shared = layers.embedding(rows, model.d_model, embedding)
        else:
            assert not model.tie_embeddings, "the output matrix is tied to an embedding of both stacks"
            self.encoder_embedding = layers.embedding(rows, model.d_model, embedding)
            self.decoder_embedding = layers.embedding(rows, model.d_model, embedding)
        plan, parts = stacks(model, moe), {"layers": layers, "exchange": exchange, "recompute": recompute}
        self.encoder = Stack(model, moe, plan["encoder"], name="encoder", **parts)
        self.decoder = Stack(model, moe, plan["decoder"], name="decoder", **parts)
        self.lm_head = None
        if not model.tie_embeddings:
            head = ParamSpec(dims=("vocab", "embed"), fan_in=model.d_model)
            self.lm_head = layers.column_linear(model.d_model, rows, head)
        self._train_losses = self._losses
        self._compiled = False
        self.noise_sites = NoiseSites({**self.encoder.noise_sites, **self.decoder.noise_sites})

    @override
    def forward(self, inputs_BL: Tensor, targets_BT: Tensor, *, mode: RouteMode, noise: NoiseKey | None) -> ModelOutput:
        assert noise is None or mode == "train", f"noise is for training only, not for mode {mode!r}"
        draws = None if noise is None else self.noise_sites.draws(noise)
        losses = self._train_losses if mode == "train" else self._losses
        return losses(inputs_BL, targets_BT, mode=mode, noise=draws)

    def _losses(
        self, inputs_BL: Tensor, targets_BT: Tensor, *, mode: RouteMode, noise: ModelDraws | None
    ) -> ModelOutput:
        encoded = self.encode(inputs_BL, mode=mode, noise=noise)
        memory = self.memory(encoded.hidden_BLD, inputs_BL)
        real_BT = targets_BT != PAD
        # The decoder sees the targets one place later; padding is also its start token.
        ids_BT = F.pad(targets_BT[:, :-1], (1, 0), value=PAD)
        decoded = self.decoder(self.embed(ids_BT, "decoder"), real_BT, memory, mode=mode, noise=noise, ids_BL=ids_BT)
        loss_BT = self.factory.cross_entropy(self.logits(decoded.hidden_BLD), targets_BT)
        return ModelOutput(
            # where, not a product: a loss that is not finite at padding must not leak.
            token_loss_BT=torch.where(real_BT, loss_BT, 0.0),
            routing={"encoder": encoded.routing, "decoder": decoded.routing},
        )

    @override
    def count_routing(self, wanted: bool) -> None:
        for block in (*self.encoder.layers, *self.decoder.layers):
            if isinstance(layer := block.ff, MoeLayer):
                layer.counts = wanted or self._compiled

    @override
    def compile_steps(self, compiler: Callable[[Callable[..., Any]], Callable[..., Any]], *, whole: bool) -> None:
        self._compiled = True
        if whole:
            self._train_losses = compiler(self._losses)
        else:
            # One function for both stacks: blocks of a kind share a graph, which takes their weights as inputs.
            self.encoder.train_block = self.decoder.train_block = compiler(run_block)

    @override
    def router_tokens(self, *, inputs: int, targets: int) -> dict[StackName, int]:
        return {"encoder": inputs, "decoder": targets}

    @override
    def start_decoding(self, inputs_BL: Tensor, *, copies: int, max_length: int, mode: RouteMode) -> T5Decoding:
        encoded_BLD = self.encode(inputs_BL, mode=mode, noise=None).hidden_BLD
        rows_RL = inputs_BL.repeat_interleave(copies, 0)
        memory = self.memory(encoded_BLD.repeat_interleave(copies, 0), rows_RL)
        return T5Decoding(self, memory, max_length=max_length, mode=mode)

    def embed(self, tokens_BL: Tensor, stack: StackName) -> Tensor:
        """Embeddings [B, L, D] of the ids that enter a stack."""
        own = self.encoder_embedding if stack == "encoder" else self.decoder_embedding
        table = own if self.shared is None else self.shared
        assert table is not None
        return table(tokens_BL)

    def encode(self, tokens_BL: Tensor, *, mode: RouteMode, noise: ModelDraws | None) -> StackOutput:
        """Encoder output [B, L, D] of token ids; id 0 is padding."""
        embedded_BLD = self.embed(tokens_BL, "encoder")
        return self.encoder(embedded_BLD, tokens_BL != PAD, mode=mode, noise=noise, ids_BL=tokens_BL)

    def memory(self, encoded_BLD: Tensor, tokens_BL: Tensor) -> Memory:
        """What the decoder attends to."""
        return Memory(hidden_BMD=encoded_BLD, mask_B11M=padding_mask(tokens_BL != PAD, encoded_BLD.dtype))

    def logits(self, decoded_BTD: Tensor) -> Tensor:
        """fp32 (or wider) logits [B, T, V]; the columns that only pad the vocabulary are -inf."""
        if self.config.logit_scale == "width":
            decoded_BTD = decoded_BTD * self.config.d_model**-0.5
        if self.lm_head is not None:
            raw_BTV = self.lm_head(decoded_BTD)
        else:
            assert self.shared is not None
            raw_BTV = self.factory.tied_logits(decoded_BTD, self.shared.weight)  # type: ignore[arg-type]
        logits_BTV = raw_BTV.to(torch.promote_types(raw_BTV.dtype, torch.float32))
        columns = logits_BTV.shape[-1]
        real = min(max(self.config.vocab_size - self.factory.tp_rank * columns, 0), columns)
        if real < columns:
            # Outside autograd and in place: softmax gives these columns exactly no gradient, and a masked copy of the
            # logits with its backward costs a tenth of a small model's step.
            with torch.no_grad():
                logits_BTV[..., real:] = float("-inf")
        return logits_BTV


class T5Decoding(Decoding):
    """Rows of a decoder with their caches of keys and values."""

    def __init__(self, module: SwitchTransformer, memory: Memory, *, max_length: int, mode: RouteMode) -> None:
        self.dtype = torch.promote_types(memory.hidden_BMD.dtype, torch.float32)
        self._module, self._memory = module, memory
        self._mode: RouteMode = mode
        self._caches = module.decoder.new_caches(memory, max_length)

    @override
    def next_logits(self, tokens_R: Tensor) -> Tensor:
        module, ids_R1 = self._module, tokens_R[:, None]
        embedded_R1D = module.embed(ids_R1, "decoder")
        hidden_R1D = module.decoder.step(embedded_R1D, ids_R1, self._memory, self._caches, mode=self._mode)
        return module.factory.gather_logits(module.logits(hidden_R1D))[:, 0, : module.config.vocab_size]

    @override
    def reorder(self, rows_R: Tensor) -> None:
        for cache in self._caches:
            cache.reorder(rows_R)
