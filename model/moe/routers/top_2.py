"""Each token chooses two experts: Mesh-TensorFlow's two gates that add up to 1, or flaxformer's plain probabilities.

Shape suffixes: G groups, S tokens per group, E experts, K choices per token (2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from conf.routing.routers import SecondChoices
from conf.routing.settings import MoeRules
from model.moe.balance import balance_loss, count_choices, second_loss
from model.moe.routers import tokens_choose
from model.moe.routers.numerics import Numerics
from model.moe.routers.router import Router
from model.moe.routers.slots import decision, queue
from model.moe.routers.tokens import Tokens
from model.moe.types import Decision

TINY = 1e-9  # what the reference adds to the sum of two gates before it divides by it


def decide(logits_GSE: Tensor, tokens: Tokens, rules: MoeRules, capacity: int) -> Decision:
    """Gates over both choices, before anything is dropped; the policy says which second choices queue."""
    if rules.gates == "full":
        return tokens_choose.decide(logits_GSE, tokens, rules, capacity)
    assert isinstance(rules.options, SecondChoices)
    numerics, E = Numerics(rules, tokens.x_GSD.dtype), rules.num_experts
    p_GSE = numerics.probabilities(logits_GSE, tokens)
    asks_GS = tokens.asking(rules)
    expert_GSK, gate_GSK, rest_GSE = _two_choices(p_GSE, asks_GS)
    gate_GSK = numerics.wide(gate_GSK)
    # f counts first choices alone
    f_GSE = count_choices(expert_GSK[..., :1], E)
    aux_loss = balance_loss(f_GSE, numerics.wide(p_GSE), tokens.real_GS, rules.aux)
    gate_GSK = _add_up_to_1(gate_GSK, asks_GS)
    asks_GSK = torch.stack((asks_GS, asks_GS | tokens.some_GS), -1)
    if rules.options.loss_weight:
        second_GSE = (expert_GSK[..., 1:] == torch.arange(E, device=p_GSE.device)) & asks_GSK[..., 1:]
        aux_loss = aux_loss + rules.options.loss_weight * second_loss(second_GSE, rest_GSE, tokens.real_GS, rules.aux)
    asks_GSK = asks_GSK & _queues(gate_GSK, tokens, rules.options)
    slots = queue(expert_GSK, asks_GSK, rules, capacity, empty_GSK=numerics.vanished(gate_GSK))
    return decision(
        slots,
        gates_GSK=torch.where(slots.kept_GSK, gate_GSK, 0.0),
        load_GSE=count_choices(expert_GSK, E, asks_GSK),
        aux_loss=aux_loss,
        logits_GSE=logits_GSE,
    )


def _two_choices(p_GSE: Tensor, asks_GS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The two most probable experts, their p, and p without the first choice.

    Tokens that make no first choice choose the same expert again, as in the reference.
    """
    first_GS, expert_GS = p_GSE.max(-1)
    chosen_GSE = expert_GS.unsqueeze(-1) == torch.arange(p_GSE.shape[-1], device=p_GSE.device)
    rest_GSE = torch.where(chosen_GSE & asks_GS.unsqueeze(-1), 0.0, p_GSE)
    second_GS, next_GS = rest_GSE.max(-1)
    return torch.stack((expert_GS, next_GS), -1), torch.stack((first_GS, second_GS), -1), rest_GSE


def _add_up_to_1(gate_GSK: Tensor, asks_GS: Tensor) -> Tensor:
    """Both gates divided by their sum; the first is 0 for tokens that make no first choice."""
    first_GS, second_GS = torch.where(asks_GS, gate_GSK[..., 0], 0.0), gate_GSK[..., 1]
    return torch.stack((first_GS, second_GS), -1) / (first_GS + second_GS + TINY).unsqueeze(-1)


def _queues(gate_GSK: Tensor, tokens: Tokens, options: SecondChoices) -> Tensor:
    """Choices that the policy for second ones lets queue, bool [G, S, 2]; it draws in training only."""
    gate_GS = gate_GSK[..., 1].detach()
    keeps_GS = everyone_GS = torch.ones_like(gate_GS, dtype=torch.bool)
    if options.policy == "none":
        keeps_GS = ~everyone_GS
    elif options.policy == "threshold":
        keeps_GS = gate_GS > options.threshold
    elif options.policy == "random" and tokens.noise is not None:
        keeps_GS = tokens.noise.uniform("router_second").to(gate_GS.dtype) < gate_GS / options.threshold
    return torch.stack((everyone_GS, keeps_GS), -1)


ROUTER = Router(decide)
