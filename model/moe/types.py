"""What a router decides and what a layer reports: the typed results of the expert layers.

Shape suffixes: G groups, S tokens per group, E experts, C capacity, K choices per token, D d_model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

# How a layer routes: "train" and "eval" differ in capacity factor and noise; "no_drop" gives every sequence a group of
# its own with a slot for every token, so that what one sequence generates does not depend on its batch.
RouteMode = Literal["train", "eval", "no_drop"]


@dataclass(frozen=True, kw_only=True)
class RouterStats:
    """Sums over the router's tokens, fp32, detached, no host sync; add them over micro-batches and ranks."""

    load_E: Tensor  # real tokens whose first choice is e, before capacity
    probability_E: Tensor  # sum of router probabilities of real tokens
    kept_E: Tensor  # real tokens that got a slot at e
    tokens: Tensor  # real tokens routed
    entropy: Tensor  # sum over real tokens of the entropy of p, nats
    confidence: Tensor  # sum over real tokens of the gate of the first choice
    slots: Tensor  # buffer rows computed: G * E * C
    groups: Tensor  # G
    aux: Tensor  # sum over groups of the group's auxiliary loss (unweighted)
    z: Tensor  # sum over real tokens of logsumexp(logits)^2, whatever the loss counts


@dataclass(frozen=True, kw_only=True)
class Routing:
    """Where every token goes. Dispatch carries no gradient; `gates_GSK` does."""

    slots_GSK: Tensor  # int64 flat slot e * C + c of each choice; E * C: dropped
    tokens_GEC: Tensor  # int64 token in each slot; S: empty
    gates_GSK: Tensor  # fp32 combine weight of each choice; 0 where dropped
    capacity: int
    aux_loss: Tensor  # fp32 scalar with gradient: sum over the G local groups of the group's loss (unweighted)
    z_sum: Tensor  # fp32 scalar with gradient: sum of logsumexp(logits)^2 over the tokens the semantics counts
    stats: RouterStats
    logits_GSE: Tensor  # fp32


@dataclass(frozen=True, kw_only=True)
class LayerRouting:
    """What one expert layer hands to the loss and to the log. Returned, never stored, so recomputation counts once."""

    aux_loss: Tensor  # as in Routing, already summed over the tensor ranks that shared the groups
    z_sum: Tensor
    positions: int  # tokens of the micro-batch in this stack, padding included
    stats: RouterStats
