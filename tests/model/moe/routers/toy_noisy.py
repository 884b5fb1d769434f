"""A router with two matrices, noise of a learnt width and a state."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from conf.routing.settings import MoeRules
from model.moe.balance import balance_loss, count_choices
from model.moe.routers.router import Router
from model.moe.routers.slots import decision, queue
from model.moe.routers.tokens import Tokens
from model.moe.types import Decision


def noisy_logits(tokens: Tokens, rules: MoeRules) -> Tensor:
    """x W + N(0, 1) * softplus(x V), the noise by Box and Muller from two keyed uniforms."""
    logits_GSE = tokens.x_GSD @ tokens.weights["weight"]
    if tokens.noise is None:
        return logits_GSE
    radius, angle = (tokens.noise.uniform(f"toy_{part}", rules.num_experts) for part in ("radius", "angle"))
    normal_GSE = (-2 * torch.log1p(-radius)).sqrt() * torch.cos(2 * math.pi * angle)
    return logits_GSE + normal_GSE.to(logits_GSE.dtype) * F.softplus(tokens.x_GSD @ tokens.weights["spread"])


def decide(logits_GSE: Tensor, tokens: Tokens, rules: MoeRules, capacity: int) -> Decision:
    """Choose by logit + bias, a state that no gradient reaches; the gate is the unbiased probability."""
    expert_GSK = (logits_GSE + tokens.weights["bias"]).argmax(-1, keepdim=True)
    p_GSE = logits_GSE.softmax(-1)
    asks_GSK = tokens.asking(rules).unsqueeze(-1)
    slots = queue(expert_GSK, asks_GSK, rules, capacity)
    load_GSE = count_choices(expert_GSK, rules.num_experts, asks_GSK)
    return decision(
        slots,
        gates_GSK=torch.where(slots.kept_GSK, p_GSE.gather(-1, expert_GSK), 0.0),
        load_GSE=load_GSE,
        aux_loss=balance_loss(load_GSE, p_GSE, tokens.real_GS, rules.aux),
        logits_GSE=logits_GSE,
    )


ROUTER = Router(decide, logits=noisy_logits)
