"""The Switch router: a pure function from token vectors to slots, gates, losses and counts.

Shape suffixes: G groups, S tokens per group, D d_model, E experts, C capacity, K choices per token (1 here), W width of
the noise (D or E). Source: Mesh-TensorFlow `_switch_gating`; what other references do differently is in
`conf.semantics`. Everything is vectorised with static shapes and never waits for the device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from conf.semantics import Semantics
from model.moe.tap import RoutingTap
from model.moe.types import RouterStats, Routing


class RouterNoise(NamedTuple):
    """Jitter of one call: uniforms in [0, 1) and the half-width j of U(1 - j, 1 + j)."""

    uniform_GSW: Tensor  # fp32; W is `noise_width`
    width: float

    def factor(self, dtype: torch.dtype) -> Tensor:
        """U(1 - j, 1 + j) in `dtype`, evaluated in at least fp32: bf16 has five values near 1."""
        return 1.0 + self.width * (2.0 * self.uniform_GSW.to(dtype) - 1.0)


class _Slots(NamedTuple):
    slots_GSK: Tensor
    tokens_GEC: Tensor
    kept_GS: Tensor
    chosen_GSE: Tensor  # bool, before capacity and before padding is taken out


def noise_width(semantics: Semantics, d_model: int, num_experts: int) -> int:
    """W of `RouterNoise.uniform_GSW`."""
    return d_model if semantics.jitter == "times_input" else num_experts


def route(
    x_GSD: Tensor,
    real_GS: Tensor,
    weight_DE: Tensor,
    *,
    semantics: Semantics,
    capacity: int,
    noise: RouterNoise | None = None,
    weight_rounding: torch.dtype | None = None,
    tap: RoutingTap | None = None,
) -> Routing:
    """Send every token to its most probable expert while that expert's slots for the group last.

    `real_GS` is False at padding. Decisions, gates and losses are fp32 whatever the activations are (fp64 stays fp64).
    Gradients reach the router through the gate, the auxiliary loss's P and the z-loss; `x_GSD` receives its share of
    those. `weight_rounding` rounds the router weight first: the reference reads it in the activation dtype in bf16
    runs (PARITY correction 3); by default it is used as it is. A `tap` may put other logits in the place of these.
    """
    wide = torch.float64 if x_GSD.dtype == torch.float64 else torch.float32
    logits_GSE = _logits(x_GSD.to(wide), weight_DE, semantics, noise, weight_rounding)
    if tap is not None:
        logits_GSE = tap.logits(logits_GSE)
    log_p_GSE = logits_GSE.log_softmax(-1)
    p_GSE = log_p_GSE.exp() if semantics.decision == "fp32" else log_p_GSE.exp().to(x_GSD.dtype)
    gate_GS, choice_GS = p_GSE.max(-1)  # the first of equal maxima
    takes_GS = real_GS if semantics.padding == "skipped" else torch.ones_like(real_GS)
    slots = _assign(choice_GS, takes_GS, weight_DE.shape[1], capacity, semantics.first_slot)
    gates_GSK = torch.where(slots.kept_GS, gate_GS.to(wide), 0.0).unsqueeze(-1)
    aux_loss = _aux_loss(p_GSE.to(wide), slots.chosen_GSE, real_GS, semantics)
    z_GS = logits_GSE.logsumexp(-1).square()
    z_real = torch.where(real_GS, z_GS, 0.0).sum()
    z_sum = z_GS.sum() if semantics.z_tokens == "all" else z_real
    return Routing(
        slots_GSK=slots.slots_GSK,
        tokens_GEC=slots.tokens_GEC,
        gates_GSK=gates_GSK,
        capacity=capacity,
        aux_loss=aux_loss,
        z_sum=z_sum,
        stats=_stats(log_p_GSE, gate_GS, slots, real_GS, aux_loss, z_real),
        logits_GSE=logits_GSE,
    )


def _logits(
    x_GSD: Tensor,
    weight_DE: Tensor,
    semantics: Semantics,
    noise: RouterNoise | None,
    weight_rounding: torch.dtype | None,
) -> Tensor:
    """Router logits in the dtype of `x_GSD`; noise touches this copy of the input only."""
    if weight_rounding is not None:
        weight_DE = weight_DE.to(weight_rounding)
    weight_DE = weight_DE.to(x_GSD.dtype)
    if noise is not None and semantics.jitter == "times_input":
        return (x_GSD * noise.factor(x_GSD.dtype)) @ weight_DE
    logits_GSE = x_GSD @ weight_DE
    return logits_GSE if noise is None else logits_GSE + noise.factor(x_GSD.dtype)


@torch.no_grad()
def _assign(choice_GS: Tensor, takes_GS: Tensor, num_experts: int, capacity: int, first_slot: int) -> _Slots:
    """Slots in token order: a token's position is the number of earlier tokens of the group at the same expert."""
    G, S = choice_GS.shape
    experts_E = torch.arange(num_experts, device=choice_GS.device)
    chosen_GSE = choice_GS.unsqueeze(-1) == experts_E
    queued_GSE = (chosen_GSE & takes_GS.unsqueeze(-1)).cumsum(1, dtype=torch.int32)
    position_GS = queued_GSE.gather(-1, choice_GS.unsqueeze(-1)).squeeze(-1).long() - 1 + first_slot
    kept_GS = takes_GS & (position_GS < capacity)
    slot_GS = torch.where(kept_GS, choice_GS * capacity + position_GS, num_experts * capacity)
    token_S = torch.arange(S, device=choice_GS.device)
    # The inverse map. A dropped token writes to a place of its own behind the slots, so that no two writes meet.
    place_GS = torch.where(kept_GS, slot_GS, num_experts * capacity + token_S)
    tokens_GP = torch.full((G, num_experts * capacity + S), S, device=choice_GS.device)
    tokens_GP.scatter_(1, place_GS, token_S.expand(G, S))
    tokens_GEC = tokens_GP[:, : num_experts * capacity].reshape(G, num_experts, capacity)
    return _Slots(slot_GS.unsqueeze(-1), tokens_GEC, kept_GS, chosen_GSE)


def _aux_loss(p_GSE: Tensor, chosen_GSE: Tensor, real_GS: Tensor, semantics: Semantics) -> Tensor:
    """Sum over groups of E * sum_e f * P, with f and P means over all tokens of the group; 1 per group if uniform."""
    f_GE = chosen_GSE.to(p_GSE.dtype).mean(1)
    loss_G = p_GSE.shape[-1] * (f_GE * p_GSE.mean(1)).sum(-1)
    if semantics.aux_scale == "real_share":
        loss_G = loss_G * real_GS.to(loss_G.dtype).mean(1)
    return loss_G.sum()


@torch.no_grad()
def _stats(
    log_p_GSE: Tensor, gate_GS: Tensor, slots: _Slots, real_GS: Tensor, aux_loss: Tensor, z_real: Tensor
) -> RouterStats:
    """Sums over real tokens; see `RouterStats`."""
    log_p_GSE = log_p_GSE.float()
    p_GSE = log_p_GSE.exp() * real_GS.unsqueeze(-1)
    load_GSE = slots.chosen_GSE & real_GS.unsqueeze(-1)
    G, E, C = slots.tokens_GEC.shape
    return RouterStats(
        load_E=load_GSE.sum((0, 1)).float(),
        probability_E=p_GSE.sum((0, 1)),
        kept_E=(load_GSE & slots.kept_GS.unsqueeze(-1)).sum((0, 1)).float(),
        tokens=real_GS.sum().float(),
        entropy=-(p_GSE * log_p_GSE).sum(),
        confidence=(gate_GS.float() * real_GS).sum(),
        slots=torch.full((), float(G * E * C), device=log_p_GSE.device),
        groups=torch.full((), float(G), device=log_p_GSE.device),
        aux=aux_loss.detach().float(),
        z=z_real.detach().float(),
    )
