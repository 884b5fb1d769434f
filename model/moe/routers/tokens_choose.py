"""Each token chooses its most probable expert, as in the Switch layer (arXiv 2101.03961, section 2), or several.

Shape suffixes: G groups, S tokens per group, E experts, K choices per token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from conf.routing.settings import MoeRules
from model.moe.balance import balance_loss, count_choices
from model.moe.routers.numerics import Numerics, ranks
from model.moe.routers.router import Router
from model.moe.routers.slots import decision, queue
from model.moe.routers.tokens import Tokens
from model.moe.types import Decision


def decide(logits_GSE: Tensor, tokens: Tokens, rules: MoeRules, capacity: int) -> Decision:
    """Tokens are served in their order; of several choices all first ones before all second ones."""
    return choose(logits_GSE, tokens, rules, capacity)


def choose(logits_GSE: Tensor, tokens: Tokens, rules: MoeRules, capacity: int, *, by_gate: bool = False) -> Decision:
    """`decide`; `by_gate` serves tokens of higher first gate first."""
    numerics, E = Numerics(rules, tokens.x_GSD.dtype), rules.num_experts
    # p(x) = softmax(x W) (equation 1); the expert is its arg max, the gate what p says of it (equation 2)
    p_GSE = numerics.probabilities(logits_GSE, tokens)
    expert_GSK, gate_GSK = most_probable(p_GSE, rules.choices)
    # loss = E * sum_e f * P (equations 4 to 6): f counts choices before capacity; P, the mean of p, has the gradient
    aux_loss = balance_loss(count_choices(expert_GSK, E), numerics.wide(p_GSE), tokens.real_GS, rules.aux)
    # each expert takes tokens in the order of its queue up to its capacity (equation 3); the others are dropped
    asks_GS = tokens.asking(rules)
    asks_GSK = asks_GS.unsqueeze(-1).expand_as(expert_GSK)
    gate_GSK = numerics.wide(gate_GSK)
    order_GS = _falling(ranks(logits_GSE, p_GSE).amax(-1), asks_GS) if by_gate else None
    empty_GSK = numerics.vanished(gate_GSK)
    slots = queue(expert_GSK, asks_GSK, rules, capacity, order_GS=order_GS, empty_GSK=empty_GSK)
    return decision(
        slots,
        gates_GSK=torch.where(slots.kept_GSK, gate_GSK, 0.0),
        load_GSE=count_choices(expert_GSK, E, asks_GSK),
        aux_loss=aux_loss,
        logits_GSE=logits_GSE,
    )


def most_probable(p_GSE: Tensor, choices: int) -> tuple[Tensor, Tensor]:
    """The K most probable experts of each token and their p, the first of equal ones first."""
    experts_E = torch.arange(p_GSE.shape[-1], device=p_GSE.device)
    experts, gates = [], []
    for k in range(choices):
        gate_GS, expert_GS = p_GSE.max(-1)
        experts.append(expert_GS)
        gates.append(gate_GS)
        if k + 1 < choices:
            # -1, then -2: with more choices than experts the second turn has the experts' own order.
            chosen_GSE = expert_GS.unsqueeze(-1) == experts_E
            p_GSE = torch.where(chosen_GSE, p_GSE.clamp(max=0.0) - 1.0, p_GSE)
    return torch.stack(experts, -1), torch.stack(gates, -1)


@torch.no_grad()
def _falling(gate_GS: Tensor, asks_GS: Tensor) -> Tensor:
    """Tokens in order of falling gate, equal gates in token order, tokens that do not ask last."""
    return torch.sort(torch.where(asks_GS, gate_GS, 0.0), dim=1, descending=True, stable=True).indices


ROUTER = Router(decide)
