"""Each expert chooses the tokens of highest score: a softmax over the group's tokens, or over the experts.

Shape suffixes: G groups, S tokens per group, E experts, K slots a token can hold (E).
"""

from __future__ import annotations

import torch
from torch import Tensor

from conf.routing.settings import MoeRules
from model.moe.balance import attention_loss
from model.moe.routers.numerics import Numerics, ranks
from model.moe.routers.router import Router
from model.moe.routers.slots import best_of_each, decision
from model.moe.routers.tokens import Tokens
from model.moe.types import Decision

FAR = -1e9  # the logit Mesh-TensorFlow gives to padding


def decide(logits_GSE: Tensor, tokens: Tokens, rules: MoeRules, capacity: int) -> Decision:
    """A token may be at several experts or at none; over tokens its takers share the gate."""
    numerics = Numerics(rules, tokens.x_GSD.dtype)
    p_GSE = numerics.wide(numerics.probabilities(logits_GSE, tokens))
    logits_GSE = numerics.wide(logits_GSE)  # scores compare tokens, so they are never narrow
    over_tokens = rules.scores == "over_tokens"
    if over_tokens:
        score_GSE = rank_GSE = numerics.softmax(_far_padding(logits_GSE, tokens, rules), dim=1)
    else:
        score_GSE, rank_GSE = p_GSE, ranks(logits_GSE, p_GSE)
    takes_GS = tokens.some_GS if rules.routed == "real" else torch.ones_like(tokens.real_GS)
    takes_GSE = takes_GS.unsqueeze(-1).expand_as(score_GSE)
    slots = best_of_each(rank_GSE.detach(), takes_GSE, capacity=capacity, limit_G=tokens.limit_G)
    gates_GSK = torch.where(slots.kept_GSK, score_GSE, 0.0)
    aux_loss = logits_GSE.new_zeros(())
    if over_tokens:
        gates_GSK = gates_GSK / slots.kept_GSK.sum(-1, keepdim=True).clamp(min=1)
        aux_loss = attention_loss(score_GSE, tokens.real_GS, tokens.importance_G)
    return decision(
        slots,
        gates_GSK=gates_GSK,
        load_GSE=slots.kept_GSK.float(),
        aux_loss=aux_loss,
        logits_GSE=logits_GSE,
    )


def _far_padding(logits_GSE: Tensor, tokens: Tokens, rules: MoeRules) -> Tensor:
    """Logits with padding far below everything, so that a softmax over tokens gives it exactly 0 beside real ones."""
    if rules.routed == "all":
        return logits_GSE
    far_GSE = torch.where(tokens.some_GS.unsqueeze(-1), logits_GSE, FAR)
    if rules.routed == "real":
        return far_GSE
    # The reference adds a number so large that fp32 keeps nothing of the logit but its gradient.
    return far_GSE.detach() + (logits_GSE - logits_GSE.detach())


ROUTER = Router(decide)
