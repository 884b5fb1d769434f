"""Two routers that the project does not have, each a decision and a row: what adding one takes (docs/extending.md)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from conf.routing.routers import ROUTERS as ROWS
from conf.routing.routers import Form, Matrix, RouterRow
from conf.routing.settings import MoeRules
from model.moe.balance import balance_loss, count_choices
from model.moe.routers.slots import decision, queue
from model.moe.routers.table import ROUTERS, Router
from model.moe.routers.tokens import Tokens
from model.moe.types import Decision


def no_logits(tokens: Tokens, rules: MoeRules) -> Tensor:
    return torch.zeros(*tokens.real_GS.shape, rules.num_experts, dtype=tokens.x_GSD.dtype)


def by_id(logits_GSE: Tensor, tokens: Tokens, rules: MoeRules, capacity: int) -> Decision:
    """The expert is the token's id modulo the number of experts, with gate 1."""
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


def noisy_logits(tokens: Tokens, rules: MoeRules) -> Tensor:
    """x W + N(0, 1) * softplus(x V), the noise by Box and Muller from two keyed uniforms."""
    logits_GSE = tokens.x_GSD @ tokens.weights["weight"]
    if tokens.noise is None:
        return logits_GSE
    radius, angle = (tokens.noise.uniform(f"toy_{part}", rules.num_experts) for part in ("radius", "angle"))
    normal_GSE = (-2 * torch.log1p(-radius)).sqrt() * torch.cos(2 * math.pi * angle)
    return logits_GSE + normal_GSE.to(logits_GSE.dtype) * F.softplus(tokens.x_GSD @ tokens.weights["spread"])


def by_biased_logits(logits_GSE: Tensor, tokens: Tokens, rules: MoeRules, capacity: int) -> Decision:
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


TOYS = {
    "toy_hash": (
        RouterRow(under={"mesh_tf": Form()}, matrices=(), needs_ids=True),
        Router(by_id, logits=no_logits),
    ),
    "toy_noisy": (
        RouterRow(
            under={"mesh_tf": Form()},
            matrices=(Matrix(name="weight"), Matrix(name="spread", init="zeros")),
            state=("bias",),
        ),
        Router(by_biased_logits, logits=noisy_logits),
    ),
}


@contextmanager
def toys() -> Iterator[None]:
    """Both are routers like any other meanwhile."""
    for name, (row, router) in TOYS.items():
        ROWS[name], ROUTERS[name] = row, router
    try:
        yield
    finally:
        for name in TOYS:
            del ROWS[name], ROUTERS[name]
