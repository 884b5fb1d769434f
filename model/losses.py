"""The training loss of one micro-batch, normalised by the global batch (docs/adr/002).

Shape suffixes: B batch, T decoder length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from conf.schema import MoeConfig
from model.moe.types import LayerRouting
from model.t5.model import ModelOutput


@dataclass(frozen=True, kw_only=True, slots=True)
class LossScale:
    """Sizes of the whole optimizer step, summed over ranks and micro-batches before the first micro-batch.

    Counts may be tensors on the model's device, so that no step waits for the host.
    """

    target_tokens: float | Tensor  # real target tokens (N)
    encoder_tokens: float | Tensor  # real tokens the encoder's routers see (M_enc)
    decoder_tokens: float | Tensor  # real tokens the decoder's routers see (M_dec)
    replicas: int  # data-parallel ranks * accumulation: how many micro-batches the engine averages over


@dataclass(frozen=True, kw_only=True, slots=True)
class LossParts:
    """`total` goes to `engine.backward`; the others are detached shares of the step's loss.

    Summed over data-parallel ranks and micro-batches `ce`, `aux` and `z` are the step's numbers, already weighted:
    the step's loss is their plain sum.
    """

    total: Tensor  # (ce + aux + z) * replicas, because the engine averages over replicas
    ce: Tensor
    aux: Tensor
    z: Tensor


def micro_batch_loss(output: ModelOutput, scale: LossScale, moe: MoeConfig) -> LossParts:
    """Cross-entropy, auxiliary loss and z-loss of one micro-batch. Scalars in fp32 (or wider)."""
    ce = output.token_loss_BT.sum() / scale.target_tokens
    layers = output.encoder_routing + output.decoder_routing
    # flaxformer averages over expert layers, the other semantics add them up (PARITY b1.5, b2.6).
    shares = max(len(layers), 1) if moe.semantics == "flaxformer" else 1
    aux = _sum([layer.aux_loss / layer.stats.groups for layer in layers], like=ce)
    aux = aux * (moe.aux_loss_weight / (scale.replicas * shares))
    z_encoder = _z_sum(output.encoder_routing, like=ce) / scale.encoder_tokens
    z_decoder = _z_sum(output.decoder_routing, like=ce) / scale.decoder_tokens
    z = (z_encoder + z_decoder) * (z_weight(moe) / shares)
    return LossParts(total=(ce + aux + z) * scale.replicas, ce=ce.detach(), aux=aux.detach(), z=z.detach())


def z_weight(moe: MoeConfig) -> float:
    """Effective weight of the z-loss: Mesh-TensorFlow adds it before multiplying by the auxiliary weight (b1.10)."""
    return moe.z_loss_weight * moe.aux_loss_weight if moe.semantics == "mesh_tf" else moe.z_loss_weight


def _z_sum(layers: Sequence[LayerRouting], *, like: Tensor) -> Tensor:
    return _sum([layer.z_sum for layer in layers], like=like)


def _sum(terms: Sequence[Tensor], *, like: Tensor) -> Tensor:
    return torch.stack(list(terms)).sum().to(like.dtype) if terms else torch.zeros_like(like)
