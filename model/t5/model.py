"""The Switch Transformer: T5's encoder-decoder with expert banks for some feed-forward layers.

Shape suffixes: B batch, L encoder length, T decoder length, D d_model, V vocabulary columns of this tensor rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from conf.derived.estimate import padded_vocab_size
from conf.derived.layers import stacks
from conf.schema import ModelConfig, MoeConfig
from conf.schema import Stack as StackName
from model.moe.types import LayerRouting, RouteMode
from model.t5.block import Memory
from model.t5.cache import LayerCache
from model.t5.position import padding_mask
from model.t5.stack import Stack, StackOutput
from parallel.layers.experts import ExpertExchange
from parallel.layers.plain import LayerFactory
from parallel.layers.sharding import ParamSpec
from parallel.rng import NoiseKey

PAD = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelOutput:
    """What a forward pass gives to the loss."""

    token_loss_BT: Tensor  # cross-entropy in fp32 (fp64 in an fp64 model), nats; 0 where the target is padding
    encoder_routing: tuple[LayerRouting, ...]  # one per expert layer
    decoder_routing: tuple[LayerRouting, ...]


class SwitchTransformer(nn.Module):
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

    def forward(
        self,
        encoder_tokens_BL: Tensor,
        decoder_inputs_BT: Tensor,
        targets_BT: Tensor,
        *,
        mode: RouteMode,
        noise: NoiseKey | None,
    ) -> ModelOutput:
        """Token losses of `targets_BT` (id 0: padding, loss 0). `noise` None: no dropout and no jitter.

        All ids are int64, in [0, vocab_size). Decoder inputs are the targets shifted right, starting with 0.
        """
        assert noise is None or mode == "train", f"noise is for training only, not for mode {mode!r}"
        encoded = self.encode(encoder_tokens_BL, mode=mode, noise=noise)
        memory = self.memory(encoded.hidden_BLD, encoder_tokens_BL)
        real_BT = targets_BT != PAD
        decoded = self.decoder(
            self.embed(decoder_inputs_BT, "decoder"), real_BT, memory, mode=mode, noise=noise, ids_BL=decoder_inputs_BT
        )
        loss_BT = self.factory.cross_entropy(self.logits(decoded.hidden_BLD), targets_BT)
        return ModelOutput(
            # where, not a product: a loss that is not finite at padding must not leak.
            token_loss_BT=torch.where(real_BT, loss_BT, 0.0),
            encoder_routing=encoded.routing,
            decoder_routing=decoded.routing,
        )

    def embed(self, tokens_BL: Tensor, stack: StackName) -> Tensor:
        """Embeddings [B, L, D] of the ids that enter a stack."""
        own = self.encoder_embedding if stack == "encoder" else self.decoder_embedding
        table = own if self.shared is None else self.shared
        assert table is not None
        return table(tokens_BL)

    def encode(self, tokens_BL: Tensor, *, mode: RouteMode, noise: NoiseKey | None) -> StackOutput:
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

    def next_logits(self, tokens_B: Tensor, memory: Memory, caches: Sequence[LayerCache], *, mode: RouteMode) -> Tensor:
        """One cached decoding step: logits [B, vocabulary] after `tokens_B`, whole on every tensor rank."""
        ids_B1 = tokens_B[:, None]
        hidden_B1D = self.decoder.step(self.embed(ids_B1, "decoder"), ids_B1, memory, caches, mode=mode)
        return self.factory.gather_logits(self.logits(hidden_B1D))[:, 0, : self.config.vocab_size]
