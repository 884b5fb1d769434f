"""No token left behind (arXiv 2101.03961, appendix B): in each round the tokens without a slot try their next choice.

Shape suffixes: G groups, S tokens per group, E experts, K slots a token can hold (1), Q choices it may try.
"""

from __future__ import annotations

import torch
from torch import Tensor

from conf.routing.settings import MoeRules
from model.moe.balance import balance_loss, count_choices
from model.moe.routers.numerics import Numerics
from model.moe.routers.router import Router
from model.moe.routers.slots import decision, queue
from model.moe.routers.tokens import Tokens
from model.moe.routers.tokens_choose import most_probable
from model.moe.types import Decision


def decide(logits_GSE: Tensor, tokens: Tokens, rules: MoeRules, capacity: int) -> Decision:
    """One slot at most; f is the mean over all Q choices, the load that of first ones."""
    numerics, E = Numerics(rules, tokens.x_GSD.dtype), rules.num_experts
    p_GSE = numerics.probabilities(logits_GSE, tokens)
    expert_GSQ, gate_GSQ = most_probable(p_GSE, rules.choices)
    asks_GSQ = tokens.asking(rules).unsqueeze(-1).expand_as(expert_GSQ)
    f_GSE = count_choices(expert_GSQ, E) / rules.choices
    aux_loss = balance_loss(f_GSE, numerics.wide(p_GSE), tokens.real_GS, rules.aux)
    gate_GSQ = numerics.wide(gate_GSQ)
    empty_GSQ = numerics.vanished(gate_GSQ)
    slots = queue(expert_GSQ, asks_GSQ, rules, capacity, rounds="until_kept", empty_GSK=empty_GSQ)
    held_GSK = slots.slots_GSK.amin(-1, keepdim=True)
    return decision(
        slots._replace(slots_GSK=held_GSK),
        gates_GSK=torch.where(slots.kept_GSK, gate_GSQ, 0.0).sum(-1, keepdim=True),
        load_GSE=count_choices(expert_GSQ[..., :1], E, asks_GSQ[..., :1]),
        aux_loss=aux_loss,
        logits_GSE=logits_GSE,
    )


ROUTER = Router(decide)
