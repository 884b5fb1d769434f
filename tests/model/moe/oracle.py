"""Naive routing and expert layer in Python loops over groups and tokens, to be read against docs/routing.md."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class OracleRouting:
    expert: dict[tuple[int, int], int] = field(default_factory=dict)  # (group, token) -> first choice
    slot: dict[tuple[int, int], int] = field(default_factory=dict)  # (group, token) -> c, only if it got one
    gate: dict[tuple[int, int], float] = field(default_factory=dict)  # of kept tokens
    aux: float = 0.0  # sum over groups
    z_sum: float = 0.0  # over real tokens
    entropy: float = 0.0
    confidence: float = 0.0


def naive_route(x: Tensor, real: Tensor, weight: Tensor, capacity: int) -> OracleRouting:
    """Mesh-TensorFlow's Switch router, one token at a time. x [G, S, D] fp64, weight [D, E] fp64."""
    groups, tokens, _ = x.shape
    experts = weight.shape[1]
    out = OracleRouting()
    for g in range(groups):
        taken = [0] * experts
        f = [0.0] * experts
        p_mean = [0.0] * experts
        for s in range(tokens):
            logits = [float((x[g, s] * weight[:, e]).sum()) for e in range(experts)]
            top = max(logits)
            total = sum(math.exp(v - top) for v in logits)
            p = [math.exp(v - top) / total for v in logits]
            choice = p.index(max(p))  # first index wins a tie
            out.expert[g, s] = choice
            f[choice] += 1 / tokens
            for e in range(experts):
                p_mean[e] += p[e] / tokens
            if not real[g, s]:
                continue
            out.z_sum += (top + math.log(total)) ** 2
            out.entropy -= sum(v * math.log(v) for v in p if v > 0)
            out.confidence += p[choice]
            if taken[choice] < capacity:
                out.slot[g, s] = taken[choice]
                out.gate[g, s] = p[choice]
            taken[choice] += 1
        share = float(real[g].sum()) / tokens
        out.aux += share * experts * sum(a * b for a, b in zip(f, p_mean, strict=True))
    return out


def naive_layer(x: Tensor, real: Tensor, router: Tensor, wi: Tensor, wo: Tensor, capacity: int) -> Tensor:
    """Output [G, S, D] of the whole layer with relu experts, differentiable through gate and experts (fp64)."""
    decided = naive_route(x.detach(), real, router.detach(), capacity)
    rows = []
    for g in range(x.shape[0]):
        for s in range(x.shape[1]):
            if (g, s) not in decided.slot:
                rows.append(torch.zeros_like(x[g, s]))
                continue
            e = decided.expert[g, s]
            gate = (x[g, s] @ router).softmax(-1)[e]
            rows.append(gate * (torch.relu(x[g, s] @ wi[e]) @ wo[e]))
    return torch.stack(rows).view_as(x)
