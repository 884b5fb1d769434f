"""From choices to slots: who gets which place in an expert's buffer, and the inverse map.

Shape suffixes: G groups, S tokens per group, E experts, C capacity, K choices per token. Everything here is integers:
decisions carry no gradient. Shapes are static and nothing waits for the device.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from conf.routing.settings import MoeRules
from model.moe.types import Decision


class Slots(NamedTuple):
    """Who sits where."""

    choices_GSK: Tensor  # int64 expert of each choice
    slots_GSK: Tensor  # int64 flat slot e * C + c of each choice; E * C: dropped
    tokens_GEC: Tensor  # int64 token in each slot; S: empty
    kept_GSK: Tensor  # bool
    places_GSK: Tensor  # int64 place of each choice in its expert's queue; it may exceed the capacity; -1: not queued


Rounds = Literal["every_choice", "until_kept"]


def decision(slots: Slots, *, gates_GSK: Tensor, load_GSE: Tensor, aux_loss: Tensor, logits_GSE: Tensor) -> Decision:
    """What a router hands over."""
    return Decision(
        slots_GSK=slots.slots_GSK,
        tokens_GEC=slots.tokens_GEC,
        gates_GSK=gates_GSK,
        choices_GSQ=slots.choices_GSK,
        places_GSQ=slots.places_GSK,
        load_GSE=load_GSE,
        aux_loss=aux_loss,
        logits_GSE=logits_GSE,
    )


@torch.no_grad()
def queue(
    choice_GSK: Tensor,
    takes_GSK: Tensor,
    rules: MoeRules,
    capacity: int,
    *,
    order_GS: Tensor | None = None,
    rounds: Rounds = "every_choice",
    empty_GSK: Tensor | None = None,
) -> Slots:
    """Queue all first choices, then all second choices, ..: each expert keeps the first `capacity` of its queue.

    Within a round tokens queue in their own order, or in that of `order_GS` (token numbers, first served first).
    `takes_GSK` is False for choices that do not queue. `until_kept`: a token that has a slot tries no further.
    Choices in `empty_GSK` take their place, but the slot stays empty.
    """
    (G, S, K), num_experts = choice_GSK.shape, rules.num_experts
    experts_E = torch.arange(num_experts, device=choice_GSK.device)
    before_G1E = torch.zeros(G, 1, num_experts, dtype=torch.int32, device=choice_GSK.device)
    waiting_GS = torch.ones(G, S, dtype=torch.bool, device=choice_GSK.device)
    if order_GS is not None:
        choice_GSK = choice_GSK.gather(1, order_GS.unsqueeze(-1).expand_as(choice_GSK))
        takes_GSK = takes_GSK.gather(1, order_GS.unsqueeze(-1).expand_as(takes_GSK))
    places, kepts = [], []
    for k in range(K):
        choice_GS1 = choice_GSK[..., k : k + 1]
        takes_GS = takes_GSK[..., k] & waiting_GS if rounds == "until_kept" else takes_GSK[..., k]
        queue_GSE = before_G1E + ((choice_GS1 == experts_E) & takes_GS.unsqueeze(-1)).cumsum(1, dtype=torch.int32)
        place_GS = queue_GSE.gather(-1, choice_GS1).squeeze(-1).long() - 1 + rules.first_slot
        kept_GS = takes_GS & (place_GS < capacity)
        waiting_GS = waiting_GS & ~kept_GS
        before_G1E = queue_GSE[:, -1:]
        places.append(torch.where(takes_GS, place_GS, -1))
        kepts.append(kept_GS)
    place_GSK, kept_GSK = torch.stack(places, -1), torch.stack(kepts, -1)
    if order_GS is not None:
        back_GSK = order_GS.argsort(1).unsqueeze(-1).expand_as(place_GSK)
        choice_GSK, place_GSK, kept_GSK = (t.gather(1, back_GSK) for t in (choice_GSK, place_GSK, kept_GSK))
    if empty_GSK is not None:
        kept_GSK = kept_GSK & ~empty_GSK
    slots_GSK = torch.where(kept_GSK, choice_GSK * capacity + place_GSK, num_experts * capacity)
    return Slots(choice_GSK, slots_GSK, invert(slots_GSK, num_experts, capacity), kept_GSK, place_GSK)


@torch.no_grad()
def best_of_each(score_GSE: Tensor, takes_GSE: Tensor, *, capacity: int, limit_G: Tensor | None = None) -> Slots:
    """Every expert takes its `capacity` tokens of highest score, in falling order; equal scores in token order.

    Tokens that `takes_GSE` excludes are taken by nobody, although they hold their place in the order. `limit_G`: slots
    of each expert that the group may use. K = E here: choice e of a token is its place at expert e.
    """
    E = score_GSE.shape[-1]
    score_GSE = score_GSE.masked_fill(~takes_GSE, float("-inf"))
    order_GSE = torch.sort(score_GSE, dim=1, descending=True, stable=True).indices
    place_GSE = order_GSE.argsort(1)
    kept_GSE = takes_GSE & (place_GSE < capacity)
    if limit_G is not None:
        kept_GSE = kept_GSE & (place_GSE < limit_G[:, None, None])
    experts_E = torch.arange(E, device=score_GSE.device)
    slots_GSE = torch.where(kept_GSE, experts_E * capacity + place_GSE, E * capacity)
    return Slots(experts_E.expand_as(slots_GSE), slots_GSE, invert(slots_GSE, E, capacity), kept_GSE, place_GSE)


def invert(slots_GSK: Tensor, num_experts: int, capacity: int) -> Tensor:
    """The token in each slot, `[G, E, C]`; S where it is empty."""
    G, S, K = slots_GSK.shape
    rows = num_experts * capacity
    # A dropped choice writes to a place of its own behind the slots, so that no two writes meet.
    own_SK = rows + torch.arange(S * K, device=slots_GSK.device).view(S, K)
    place_GSK = torch.where(slots_GSK < rows, slots_GSK, own_SK)
    token_SK = torch.arange(S, device=slots_GSK.device).unsqueeze(1).expand(S, K)
    tokens_GP = torch.full((G, rows + S * K), S, device=slots_GSK.device)
    tokens_GP.scatter_(1, place_GSK.flatten(1), token_SK.reshape(1, -1).expand(G, -1))
    return tokens_GP[:, :rows].reshape(G, num_experts, capacity)
