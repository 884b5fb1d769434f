"""The losses of a router and what it reports: f * P in every recorded form, the z-loss, counts.

Shape suffixes: G groups, S tokens per group, E experts, K choices per token. Losses are sums over the groups here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from conf.routing.settings import AuxRule, Counted
from model.moe.types import Decision, LayerBalance, RouterStats, Routing


@torch.no_grad()
def count_choices(choice_GSK: Tensor, num_experts: int, counted_GSK: Tensor | None = None) -> Tensor:
    """How many of each token's choices (of those counted) are each expert, `[G, S, E]` fp32."""
    experts_E = torch.arange(num_experts, device=choice_GSK.device)
    count_GSE = torch.zeros(*choice_GSK.shape[:2], num_experts, device=choice_GSK.device)
    for k in range(choice_GSK.shape[-1]):
        chosen_GSE = choice_GSK[..., k : k + 1] == experts_E
        count_GSE = count_GSE + (chosen_GSE if counted_GSK is None else chosen_GSE & counted_GSK[..., k : k + 1])
    return count_GSE


def balance_loss(chosen_GSE: Tensor, p_GSE: Tensor, real_GS: Tensor, rule: AuxRule) -> Tensor:
    """Sum over groups of E * sum_e f * P; 1 for each group if uniform. Gradient flows through P alone."""
    f_GE = _mean(chosen_GSE.to(p_GSE.dtype), real_GS, rule.f, rule.mean)
    P_GE = _mean(p_GSE, real_GS, rule.P, rule.mean)
    return _sum_of_products(f_GE, P_GE, real_GS, rule)


def second_loss(second_GSE: Tensor, rest_GSE: Tensor, real_GS: Tensor, rule: AuxRule) -> Tensor:
    """The same over second choices: P is what remains of p without the first choice, renormalised.

    Where the means divide by all tokens, padding counts in P as well.
    """
    f_GE = _mean(second_GSE.to(rest_GSE.dtype), real_GS, rule.mean, rule.mean)
    P_GE = _mean(rest_GSE / (rest_GSE.sum(-1, keepdim=True) + 1e-9), real_GS, rule.mean, rule.mean)
    return _sum_of_products(f_GE, P_GE, real_GS, rule)


def _sum_of_products(f_GE: Tensor, P_GE: Tensor, real_GS: Tensor, rule: AuxRule) -> Tensor:
    loss_G = P_GE.shape[-1] * (f_GE * P_GE).sum(-1)
    if rule.scale == "real_share":
        loss_G = loss_G * real_GS.to(loss_G.dtype).mean(1)
    return loss_G.sum()


def attention_loss(q_GSE: Tensor, real_GS: Tensor, count_G: Tensor) -> Tensor:
    """Balance where experts choose by a softmax over tokens: sum over groups of n * sum_s (mean_e q)^2.

    Every real token should get the same attention; `count_G` is n, the group's real tokens. 1 for each group if so.
    """
    attention_GS = torch.where(real_GS, q_GSE.mean(-1), 0.0)
    return (count_G.to(q_GSE.dtype) * attention_GS.square().sum(1)).sum()


def _mean(values_GSE: Tensor, real_GS: Tensor, counted: Counted, divisor: Counted) -> Tensor:
    """Mean over the tokens of each group, `[G, E]`; 0 for a group without any."""
    if counted == "real":
        values_GSE = torch.where(real_GS.unsqueeze(-1), values_GSE, 0.0)
    if divisor == "all":
        return values_GSE.mean(1)
    return values_GSE.sum(1) / real_GS.sum(1, keepdim=True).clamp(min=1)


def z_sums(logits_GSE: Tensor, real_GS: Tensor, counted: Literal["real", "all", "zeroed"]) -> tuple[Tensor, Tensor]:
    """Sum of logsumexp(logits)^2 over the tokens the loss counts, and over real tokens (fp32 or wider)."""
    wide = torch.promote_types(logits_GSE.dtype, torch.float32)
    if counted == "zeroed":
        counted_GSE = logits_GSE * real_GS.unsqueeze(-1)
        z_GS = counted_GSE.logsumexp(-1).square().to(wide)
        return z_GS.sum(), torch.where(real_GS, z_GS, 0.0).sum()
    z_GS = logits_GSE.logsumexp(-1).square().to(wide)
    z_real = torch.where(real_GS, z_GS, 0.0).sum()
    return (z_GS.sum() if counted == "all" else z_real), z_real


@torch.no_grad()
def router_stats(decision: Decision, real_GS: Tensor, z_real: Tensor) -> RouterStats:
    """Sums over real tokens; see `RouterStats`."""
    log_p_GSE = decision.logits_GSE.float().log_softmax(-1)
    p_GSE = log_p_GSE.exp() * real_GS.unsqueeze(-1)
    G, E, C = decision.tokens_GEC.shape
    pad_G1 = torch.zeros(G, 1, dtype=torch.bool, device=real_GS.device)
    held_GEC = torch.cat((real_GS, pad_G1), 1).gather(1, decision.tokens_GEC.flatten(1)).view(G, E, C)
    has_slot_GS = (decision.slots_GSK < E * C).any(-1)
    return RouterStats(
        load_E=torch.where(real_GS.unsqueeze(-1), decision.load_GSE, 0.0).sum((0, 1)).float(),
        probability_E=p_GSE.sum((0, 1)),
        kept_E=held_GEC.sum((0, 2)).float(),
        tokens=real_GS.sum().float(),
        routed=(has_slot_GS & real_GS).sum().float(),
        entropy=-(p_GSE * log_p_GSE).sum(),
        confidence=p_GSE.amax(-1).sum(),
        slots=torch.full((), float(G * E * C), device=log_p_GSE.device),
        groups=torch.full((), float(G), device=log_p_GSE.device),
        aux=decision.aux_loss.detach().float(),
        z=z_real.detach().float(),
    )


def layer_balance(routing: Routing, *, after_capacity: bool) -> LayerBalance:
    """f and P of one layer of top-1 routing, for Hugging Face's loss, which joins a stack's layers along the tokens.

    Each layer hands over its own means; their mean over the layers is that of the joined tokens, since every layer of
    a stack has as many. Routing groups are single sequences there, so the loss does not depend on the layout.

    f is of the most probable expert by the logits, not by probabilities rounded to the activations' dtype; with
    `after_capacity` of the expert that took the token, a dropped one counting for expert 0 (as 4.57.6 does).
    """
    logits_GSE = routing.logits_GSE
    with torch.no_grad():
        _, E, C = routing.tokens_GEC.shape
        slot_GS = routing.slots_GSK[..., 0]
        kept_GS = torch.where(slot_GS < E * C, torch.div(slot_GS, C, rounding_mode="floor"), 0)
        expert_GS = kept_GS if after_capacity else logits_GSE.argmax(-1)
        f_GE = F.one_hot(expert_GS, E).to(logits_GSE.dtype).mean(1)
    return LayerBalance(f_GE=f_GE, p_GE=logits_GSE.softmax(-1).mean(1))


def joined_loss(layers: Sequence[LayerBalance]) -> Tensor:
    """Auxiliary loss of a stack: mean over groups of E * sum_e f * P, with f and P means over layers; 1 if uniform."""
    f_GE = torch.stack([layer.f_GE for layer in layers]).mean(0)
    p_GE = torch.stack([layer.p_GE for layer in layers]).mean(0)
    return f_GE.shape[-1] * (f_GE * p_GE).sum(-1).mean()
