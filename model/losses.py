"""The training loss of one micro-batch, normalised by the global batch (docs/adr/002).

Shape suffixes: B batch, T decoder length.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from conf.derived.layers import STACKS
from conf.routing.references import SEMANTICS
from conf.routing.settings import is_silent, over_layers, z_divisor
from conf.schema import MoeConfig
from model.moe.balance import joined_loss
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
    aux, z = torch.zeros_like(ce), torch.zeros_like(ce)
    layers = len(output.encoder_routing) + len(output.decoder_routing)
    routings = (output.encoder_routing, output.decoder_routing)
    real = (scale.encoder_tokens, scale.decoder_tokens)
    for stack, routing, real_tokens in zip(STACKS, routings, real, strict=True):
        if not routing or is_silent(moe, stack):
            continue
        join = over_layers(moe)
        shares = {"sum": 1, "mean": layers, "stack_mean": len(routing), "joined": len(routing)}[join]
        if join == "joined":
            balances = [layer.balance for layer in routing if layer.balance is not None]
            assert len(balances) == len(routing), "expert layers that do not report what a joined loss needs"
            aux = aux + joined_loss(balances) / scale.replicas
        for layer in routing:
            if join != "joined":
                aux = aux + layer.aux_loss / layer.stats.groups / (shares * scale.replicas)
            # Every micro-batch has as many tokens when padding counts; when it does not, the step's sum is needed.
            tokens = real_tokens if z_divisor(moe) == "real" else layer.positions * scale.replicas
            z = z + layer.z_sum / tokens / shares
    aux, z = aux * moe.aux_loss_weight, z * z_weight(moe)
    return LossParts(total=(ce + aux + z) * scale.replicas, ce=ce.detach(), aux=aux.detach(), z=z.detach())


def z_weight(moe: MoeConfig) -> float:
    """Effective weight of the z-loss."""
    return moe.z_loss_weight * (moe.aux_loss_weight if SEMANTICS[moe.semantics].z_scale == "aux_weight" else 1.0)
