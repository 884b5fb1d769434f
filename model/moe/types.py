"""What a router decides and what a layer reports: the typed results of the expert layers.

Shape suffixes: G groups, S tokens per group, E experts, C capacity, K slots a token can hold, Q choices it may try,
D d_model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

# How a layer routes: "train" and "eval" differ in capacity factor and noise; "no_drop" gives every sequence a group of
# its own with a slot for every token, so that what one sequence generates does not depend on its batch. Where experts
# choose tokens, "no_drop" is that group with the capacity its real tokens have in evaluation.
RouteMode = Literal["train", "eval", "no_drop"]


@dataclass(frozen=True, kw_only=True)
class RouterStats:
    """Sums over the router's tokens, fp32, detached, no host sync; add them over micro-batches and ranks."""

    load_E: Tensor  # choices of real tokens that fall on e, before capacity (experts choose: tokens that e took)
    probability_E: Tensor  # sum of router probabilities of real tokens
    kept_E: Tensor  # slots of e that hold real tokens
    tokens: Tensor  # real tokens routed
    routed: Tensor  # real tokens with a slot at one expert or more
    entropy: Tensor  # sum over real tokens of the entropy of p over the experts, nats
    confidence: Tensor  # sum over real tokens of the largest probability
    slots: Tensor  # rows that experts compute: G * E * C, or the kept choices where nothing bounds them
    groups: Tensor  # G
    aux: Tensor  # sum over groups of the group's auxiliary loss (unweighted)
    z: Tensor  # sum over real tokens of logsumexp(logits)^2, whatever the loss counts


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Where every token goes. Dispatch carries no gradient; `gates_GSK` does.

    K is the most slots a token can hold: 1, the choices of top_2 and its like, or E where experts choose tokens.
    """

    slots_GSK: Tensor  # int64 flat slot e * C + c of each choice; E * C: dropped
    tokens_GEC: Tensor  # int64 token in each slot; S: empty
    gates_GSK: Tensor  # fp32 combine weight of each choice; 0 where dropped
    choices_GSQ: Tensor  # int64 expert of each choice that was looked at; Q >= K
    places_GSQ: Tensor  # int64 place of that choice in its expert's queue, which may exceed the capacity; -1: none
    load_GSE: Tensor  # fp32 how often each token asks for each expert, before capacity
    aux_loss: Tensor  # fp32 scalar with gradient: sum over the G local groups of the group's loss (unweighted)
    logits_GSE: Tensor  # what was decided by, fp32


@dataclass(frozen=True, kw_only=True)
class Routing(Decision):
    """A decision, and what the losses and the log need beside it."""

    capacity: int
    z_sum: Tensor  # fp32 scalar with gradient: sum of logsumexp(logits)^2 over the tokens that the z-loss counts
    stats: RouterStats | None  # where they are wanted


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerBalance:
    """Means over the tokens of each group, padding included, of a layer whose loss is joined with its stack's."""

    f_GE: Tensor  # share of tokens that count for e; no gradient
    p_GE: Tensor  # router probability, in fp32 or wider


@dataclass(frozen=True, kw_only=True)
class LayerRouting:
    """What one expert layer hands to the loss and to the log. Returned, never stored, so recomputation counts once."""

    aux_loss: Tensor  # as in Routing, already summed over the tensor ranks that shared the groups
    z_sum: Tensor
    positions: int  # tokens of the micro-batch in this stack, padding included
    groups: int  # routing groups of the micro-batch
    stats: RouterStats | None  # None where nobody asked for them (`MoeLayer.counts`)
    balance: LayerBalance | None = None  # of all groups of the micro-batch, where losses join layers before f and P
