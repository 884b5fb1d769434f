"""What Hugging Face's auxiliary loss needs of a layer: it joins a stack's layers along the tokens before f and P.

Each layer hands over its own means; their mean over the layers is that of the joined tokens, since every layer of a
stack has as many. Routing groups are single sequences there, so the loss does not depend on the layout.

Shape suffixes: G groups, S tokens per group, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model.moe.types import Routing


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerBalance:
    """Means over the tokens of each group, padding included."""

    f_GE: Tensor  # share of tokens that count for e; no gradient
    p_GE: Tensor  # router probability, in fp32 or wider


def layer_balance(routing: Routing, *, after_capacity: bool) -> LayerBalance:
    """f and P of one layer of top-1 routing.

    f is of the most probable expert by the logits, not by probabilities rounded to the activations' dtype; with
    `after_capacity` of the expert that took the token, a dropped one counting for expert 0 (as 4.57.6 does).
    """
    logits_GSE = routing.logits_GSE
    with torch.no_grad():
        _, E, C = routing.tokens_GEC.shape
        slot_GS = routing.slots_GSK[..., 0]
        kept_GS = torch.where(slot_GS < E * C, torch.div(slot_GS, C, rounding_mode="floor"), 0)
        expert_GS = kept_GS if after_capacity else logits_GSE.argmax(-1)
        f_GE = F.one_hot(expert_GS, E).to(logits_GSE.dtype).mean(1)
    return LayerBalance(f_GE=f_GE, p_GE=logits_GSE.softmax(-1).mean(1))


def joined_loss(layers: Sequence[LayerBalance]) -> Tensor:
    """Auxiliary loss of a stack: mean over groups of E * sum_e f * P, with f and P means over layers; 1 if uniform."""
    f_GE = torch.stack([layer.f_GE for layer in layers]).mean(0)
    p_GE = torch.stack([layer.p_GE for layer in layers]).mean(0)
    return f_GE.shape[-1] * (f_GE * p_GE).sum(-1).mean()
