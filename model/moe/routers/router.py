"""The router as a pure function from token vectors to slots, gates, losses and counts.

Shape suffixes: G groups, S tokens per group, D d_model, E experts, C capacity, K slots a token can hold, Q choices it
may try, W width of the jitter (D or E). What a router does is data (`conf.routing.RouterSettings`); sources are named
at the rows of `conf.routing.references`. Everything is vectorised with static shapes and never waits for the device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from conf.routing.settings import RouterSettings
from model.moe.balance import (
    attention_loss,
    balance_loss,
    choice_shares,
    count_choices,
    router_stats,
    second_loss,
    z_sums,
)
from model.moe.routers.slots import Slots, experts_choose, tokens_choose
from model.moe.tap import RoutingTap
from model.moe.types import Routing

TINY = 1e-9  # what the reference adds to the sum of two gates before it divides by it
FAR = -1e9  # the logit the reference gives to padding where experts choose


class RouterNoise(NamedTuple):
    """Noise of one call: uniforms in [0, 1)."""

    uniform_GSW: Tensor | None = None  # jitter, fp32; W is `noise_width`
    width: float = 0.0  # half-width j of U(1 - j, 1 + j)
    second_GS: Tensor | None = None  # what second choices are drawn with under second_policy "random"

    def factor(self, dtype: torch.dtype) -> Tensor:
        """U(1 - j, 1 + j) in `dtype`, which is at least fp32 unless the router itself computes in less: bf16 has five
        values near 1."""
        assert self.uniform_GSW is not None
        return 1.0 + self.width * (2.0 * self.uniform_GSW.to(dtype) - 1.0)


def noise_width(settings: RouterSettings, d_model: int, num_experts: int) -> int:
    """W of `RouterNoise.uniform_GSW`."""
    return d_model if settings.jitter == "times_input" else num_experts


class _Tokens(NamedTuple):
    """Which tokens count: real ones, and those that padding rules let in."""

    real_GS: Tensor  # bool
    some_GS: Tensor  # bool, importance above 0
    weight_GS: Tensor  # importance itself


def route(
    x_GSD: Tensor,
    real_GS: Tensor,
    weight_DE: Tensor,
    *,
    settings: RouterSettings,
    capacity: int,
    noise: RouterNoise | None = None,
    importance_GS: Tensor | None = None,
    limit_G: Tensor | None = None,
    tap: RoutingTap | None = None,
) -> Routing:
    """Send tokens to experts as `settings` say, at most `capacity` of a group to one expert.

    `real_GS` is False at padding. Decisions, gates and losses are fp32 whatever the activations are (fp64 stays fp64),
    unless the settings name another dtype. Gradients reach the router through gates, P and the z-loss; dispatch
    carries none. `importance_GS` replaces `real_GS` by Mesh-TensorFlow's float mask, in which values strictly between
    0 and 1 mark second-rate tokens; recordings have them, runs do not. `limit_G`: where experts choose, the slots of
    each expert that a group may fill. A `tap` may put other logits in the place of the computed ones.
    """
    wide = torch.float64 if x_GSD.dtype == torch.float64 else torch.float32
    tokens = _Tokens(real_GS, real_GS, real_GS)
    if importance_GS is not None:
        tokens = _Tokens(importance_GS == 1, importance_GS > 0, importance_GS)
    read_GSD = x_GSD if settings.product == "activation" else x_GSD.to(wide)
    logits_GSE = _logits(read_GSD, weight_DE, settings, noise, x_GSD)
    if settings.math == "fp32":
        logits_GSE = logits_GSE.to(wide)
    if tap is not None:
        logits_GSE = tap.logits(logits_GSE)
    p_GSE = _softmax(logits_GSE, settings)
    if settings.decision == "activation":
        p_GSE = logits_GSE.softmax(-1).to(x_GSD.dtype)  # rounding decides ties, so in the form of that reference
    if settings.padding == "zeroed":
        p_GSE = torch.where(tokens.real_GS.unsqueeze(-1), p_GSE, 0.0)
    if settings.router == "expert_choice":
        return _experts_choose(logits_GSE.to(wide), p_GSE.to(wide), tokens, settings, capacity, limit_G)
    second_GS = noise.second_GS if noise is not None else None
    return _tokens_choose(logits_GSE, p_GSE, tokens, settings, capacity, second_GS, x_GSD.dtype, wide)


def _softmax(logits_GSE: Tensor, settings: RouterSettings, *, dim: int = -1) -> Tensor:
    """Probabilities in the dtype of the logits; in a narrow dtype the forms round differently at every step."""
    if settings.softmax == "fused":
        return logits_GSE.softmax(dim)
    top = logits_GSE.detach().amax(dim, keepdim=True)
    exp_GSE = (logits_GSE - top).exp()
    total = exp_GSE.sum(dim, keepdim=True)
    if settings.softmax == "over_sum":
        return exp_GSE / total
    # Not torch.logsumexp, whose gradient is exp(l - logsumexp): far from 0 the logsumexp has lost digits of the sum. In
    # a group of padding alone, all at -1e9, it has lost the sum: every p is 1, and the gradient still that of a mean.
    return (logits_GSE - (total.log() + top)).exp()


def _logits(
    x_GSD: Tensor, weight_DE: Tensor, settings: RouterSettings, noise: RouterNoise | None, given_GSD: Tensor
) -> Tensor:
    """Router logits in the dtype of `x_GSD`; noise touches this copy of the input only."""
    if settings.kernel == "activation":
        weight_DE = weight_DE.to(given_GSD.dtype)
    weight_DE = weight_DE.to(x_GSD.dtype)
    if noise is None or noise.uniform_GSW is None:
        return x_GSD @ weight_DE
    if settings.jitter == "times_input":
        return (x_GSD * noise.factor(x_GSD.dtype)) @ weight_DE
    return x_GSD @ weight_DE + noise.factor(x_GSD.dtype)


def _tokens_choose(
    logits_GSE: Tensor,
    p_GSE: Tensor,
    tokens: _Tokens,
    settings: RouterSettings,
    capacity: int,
    second_GS: Tensor | None,
    activation: torch.dtype,
    wide: torch.dtype,
) -> Routing:
    """Each token asks for its most probable experts."""
    E = p_GSE.shape[-1]
    counts_GS = tokens.real_GS if settings.padding == "skipped" else torch.ones_like(tokens.real_GS)
    choice_GSQ, gate_GSQ, rest_GSE = _top_choices(p_GSE, counts_GS, settings)
    gate_GSQ = gate_GSQ.to(wide)
    takes_GSQ = counts_GS.unsqueeze(-1).expand_as(choice_GSQ)
    aux = balance_loss(choice_shares(choice_GSQ, settings, E), p_GSE.to(wide), tokens.real_GS, settings)
    if settings.gates == "renormalised":
        gate_GSQ, takes_GSQ = _two_gates(gate_GSQ, counts_GS, tokens.some_GS)
        if settings.second_loss_weight:
            second_GSE = (choice_GSQ[..., 1:] == torch.arange(E, device=p_GSE.device)) & takes_GSQ[..., 1:]
            aux = aux + settings.second_loss_weight * second_loss(second_GSE, rest_GSE, tokens.real_GS, settings)
        takes_GSQ = _keep_second(takes_GSQ, gate_GSQ, settings, second_GS)
    slots = tokens_choose(
        choice_GSQ,
        takes_GSQ,
        num_experts=E,
        capacity=capacity,
        first_slot=settings.first_slot,
        order_GS=_falling(_ranks(logits_GSE, p_GSE).amax(-1), counts_GS) if settings.order == "gate" else None,
        rounds="until_kept" if settings.router == "ntlb" else "every_choice",
        empty_GSK=gate_GSQ.detach().to(activation) == 0 if settings.zero_gate == "dropped" else None,
    )
    gates_GSQ = torch.where(slots.kept_GSK, gate_GSQ, 0.0)
    slots_GSK, gates_GSK = slots.slots_GSK, gates_GSQ
    if settings.router == "ntlb":  # one slot at most
        slots_GSK, gates_GSK = slots_GSK.amin(-1, keepdim=True), gates_GSQ.sum(-1, keepdim=True)
    asked = 1 if settings.router == "ntlb" else settings.choices
    load_GSE = count_choices(choice_GSQ[..., :asked], E, takes_GSQ[..., :asked])
    return _routing(logits_GSE, slots, slots_GSK, gates_GSK, choice_GSQ, load_GSE, tokens, settings, capacity, aux)


def _top_choices(p_GSE: Tensor, first_GS: Tensor, settings: RouterSettings) -> tuple[Tensor, Tensor, Tensor]:
    """The Q most probable experts of each token and their p, the first of equal ones first; and what p is left.

    Where gates are renormalised, what was chosen leaves 0 behind, and tokens that make no first choice choose the same
    expert again, as in the reference.
    """
    experts_E = torch.arange(p_GSE.shape[-1], device=p_GSE.device)
    choices, gates, rest_GSE = [], [], p_GSE
    for q in range(settings.choices):
        gate_GS, choice_GS = rest_GSE.max(-1)
        choices.append(choice_GS)
        gates.append(gate_GS)
        if q + 1 < settings.choices:
            chosen_GSE = choice_GS.unsqueeze(-1) == experts_E
            if settings.gates == "renormalised":
                rest_GSE = torch.where(chosen_GSE & first_GS.unsqueeze(-1), 0.0, rest_GSE)
            else:
                # -1, then -2: with more choices than experts the second turn has the experts' own order.
                rest_GSE = torch.where(chosen_GSE, rest_GSE.clamp(max=0.0) - 1.0, rest_GSE)
    return torch.stack(choices, -1), torch.stack(gates, -1), rest_GSE


def _two_gates(gate_GSQ: Tensor, first_GS: Tensor, some_GS: Tensor) -> tuple[Tensor, Tensor]:
    """Two gates that add up to 1, before anything is dropped, and who asks in which round."""
    first, second = torch.where(first_GS, gate_GSQ[..., 0], 0.0), gate_GSQ[..., 1]
    gates_GSQ = torch.stack((first, second), -1) / (first + second + TINY).unsqueeze(-1)
    return gates_GSQ, torch.stack((first_GS, first_GS | some_GS), -1)


def _keep_second(takes_GSQ: Tensor, gate_GSQ: Tensor, settings: RouterSettings, second_GS: Tensor | None) -> Tensor:
    """Which choices queue under the policy for second ones."""
    gate_GS = gate_GSQ[..., 1].detach()
    if settings.second_policy == "none":
        keeps_GS = torch.zeros_like(takes_GSQ[..., 1])
    elif settings.second_policy == "threshold":
        keeps_GS = gate_GS > settings.second_threshold
    elif settings.second_policy == "random" and second_GS is not None:
        keeps_GS = second_GS.to(gate_GS.dtype) < gate_GS / settings.second_threshold
    else:
        return takes_GSQ
    return torch.stack((takes_GSQ[..., 0], takes_GSQ[..., 1] & keeps_GS), -1)


@torch.no_grad()
def _ranks(logits_GSE: Tensor, p_GSE: Tensor) -> Tensor:
    """What tokens are compared by: p, where fp32 by way of fp64.

    A sum over experts in fp32 depends on their order, so tokens with the same logits for other experts, whose gates are
    equal, would differ in the last bit, and the later one could come first.
    """
    if p_GSE.dtype != torch.float32 or logits_GSE.dtype != torch.float32:
        return p_GSE
    return torch.where(p_GSE == 0, p_GSE, logits_GSE.double().softmax(-1).float())


@torch.no_grad()
def _falling(gate_GS: Tensor, counts_GS: Tensor) -> Tensor:
    """Tokens in order of falling gate, equal gates in token order, tokens that do not count last."""
    return torch.sort(torch.where(counts_GS, gate_GS, 0.0), dim=1, descending=True, stable=True).indices


def _experts_choose(
    logits_GSE: Tensor, p_GSE: Tensor, tokens: _Tokens, settings: RouterSettings, capacity: int, limit_G: Tensor | None
) -> Routing:
    """Each expert asks for the tokens of highest score: a softmax over the group's tokens, or over the experts."""
    E = p_GSE.shape[-1]
    if settings.expert_softmax == "over_tokens":
        score_GSE = rank_GSE = _softmax(_far_padding(logits_GSE, tokens, settings), settings, dim=1)
    else:
        score_GSE, rank_GSE = p_GSE, _ranks(logits_GSE, p_GSE)
    takes_GS = tokens.some_GS if settings.padding == "skipped" else torch.ones_like(tokens.some_GS)
    takes_GSE = takes_GS.unsqueeze(-1).expand_as(score_GSE)
    slots = experts_choose(rank_GSE.detach(), takes_GSE, capacity=capacity, limit_G=limit_G)
    gates_GSK = torch.where(slots.kept_GSK, score_GSE, 0.0)
    if settings.expert_softmax == "over_tokens":
        gates_GSK = gates_GSK / slots.kept_GSK.sum(-1, keepdim=True).clamp(min=1)
        aux = attention_loss(score_GSE, tokens.real_GS, tokens.weight_GS.sum(1))
    else:
        aux = logits_GSE.new_zeros(())
    choice_GSQ = torch.arange(E, device=p_GSE.device).expand_as(slots.slots_GSK)
    load_GSE = slots.kept_GSK.float()
    return _routing(
        logits_GSE, slots, slots.slots_GSK, gates_GSK, choice_GSQ, load_GSE, tokens, settings, capacity, aux
    )


def _far_padding(logits_GSE: Tensor, tokens: _Tokens, settings: RouterSettings) -> Tensor:
    """Logits with padding far below everything, so that a softmax over tokens gives it exactly 0 beside real ones."""
    if settings.padding == "routed":
        return logits_GSE
    far_GSE = torch.where(tokens.some_GS.unsqueeze(-1), logits_GSE, FAR)
    if settings.padding == "skipped":
        return far_GSE
    # The reference adds a number so large that fp32 keeps nothing of the logit but its gradient.
    return far_GSE.detach() + (logits_GSE - logits_GSE.detach())


def _routing(
    logits_GSE: Tensor,
    slots: Slots,
    slots_GSK: Tensor,
    gates_GSK: Tensor,
    choice_GSQ: Tensor,
    load_GSE: Tensor,
    tokens: _Tokens,
    settings: RouterSettings,
    capacity: int,
    aux_loss: Tensor,
) -> Routing:
    z_sum, z_real = z_sums(logits_GSE, tokens.real_GS, settings)
    return Routing(
        slots_GSK=slots_GSK,
        tokens_GEC=slots.tokens_GEC,
        gates_GSK=gates_GSK,
        choices_GSQ=choice_GSQ,
        places_GSQ=slots.queued_GSK,
        capacity=capacity,
        aux_loss=aux_loss,
        z_sum=z_sum,
        stats=router_stats(logits_GSE, load_GSE, slots, tokens.real_GS, aux_loss, z_real),
        logits_GSE=logits_GSE,
    )
