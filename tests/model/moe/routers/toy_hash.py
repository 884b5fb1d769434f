"""A router without weights: the expert is a token's id modulo the number of experts."""

from __future__ import annotations

import torch
from torch import Tensor

from conf.routing.settings import MoeRules
from model.moe.balance import count_choices
from model.moe.routers.router import Router
from model.moe.routers.slots import decision, queue
from model.moe.routers.tokens import Tokens
from model.moe.types import Decision


def no_logits(tokens: Tokens, rules: MoeRules) -> Tensor:
    return torch.zeros(*tokens.real_GS.shape, rules.num_experts, dtype=tokens.x_GSD.dtype)


def decide(logits_GSE: Tensor, tokens: Tokens, rules: MoeRules, capacity: int) -> Decision:
    """The gate is 1."""
    assert tokens.ids_GS is not None
    expert_GSK = (tokens.ids_GS % rules.num_experts).unsqueeze(-1)
    asks_GSK = tokens.asking(rules).unsqueeze(-1)
    slots = queue(expert_GSK, asks_GSK, rules, capacity)
    return decision(
        slots,
        gates_GSK=slots.kept_GSK.to(logits_GSE.dtype),
        load_GSE=count_choices(expert_GSK, rules.num_experts, asks_GSK),
        aux_loss=logits_GSE.new_zeros(()),
        logits_GSE=logits_GSE,
    )


ROUTER = Router(decide, logits=no_logits)
