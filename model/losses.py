"""The training loss of one micro-batch, normalised by the global batch (docs/adr/002).

Shape suffixes: B batch, T decoder length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from conf.routing.settings import moe_rules
from conf.schema import MoeConfig, Stack
from model.contract import ModelOutput
from model.moe.balance import joined_loss


@dataclass(frozen=True, kw_only=True, slots=True)
class LossScale:
    """Sizes of the whole optimizer step, summed over ranks and micro-batches before the first micro-batch.

    Counts may be tensors on the model's device, so that no step waits for the host.
    """

    target_tokens: float | Tensor  # real target tokens (N)
    router_tokens: Mapping[Stack, float | Tensor]  # real tokens that the routers of each stack see (M)
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
    layers = len(output.layers)
    for stack, routing in output.routing.items():
        rules = moe_rules(moe, stack).losses
        if not routing or rules.silent:
            continue
        shares = {"sum": 1, "mean": layers, "stack_mean": len(routing), "joined": len(routing)}[rules.join]
        if rules.join == "joined":
            balances = [layer.balance for layer in routing if layer.balance is not None]
            assert len(balances) == len(routing), "expert layers that do not report what a joined loss needs"
            aux = aux + joined_loss(balances) / scale.replicas
        for layer in routing:
            if rules.join != "joined":
                aux = aux + layer.aux_loss / layer.groups / (shares * scale.replicas)
            # Every micro-batch has as many tokens when padding counts; when it does not, the step's sum is needed.
            tokens = scale.router_tokens[stack] if rules.z_divisor == "real" else layer.positions * scale.replicas
            z = z + layer.z_sum / tokens / shares
    weights = moe_rules(moe, "encoder").losses
    aux, z = aux * weights.aux_weight, z * weights.z_weight
    return LossParts(total=(ce + aux + z) * scale.replicas, ce=ce.detach(), aux=aux.detach(), z=z.detach())
