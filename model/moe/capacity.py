"""Capacity as a function of tensors: slots of one expert for groups of differing numbers of tokens.

Shape suffixes: G groups. The rule for one number is `conf.derived.groups.expert_capacity`, which a test compares.
"""

from __future__ import annotations

import torch
from torch import Tensor

from conf.routing.references import SEMANTICS
from conf.schema import MoeConfig


def capacities(moe: MoeConfig, tokens_G: Tensor, *, train: bool) -> Tensor:
    """`expert_capacity` of each number of tokens (int64), without waiting for the device."""
    row = SEMANTICS[moe.semantics]
    if row.capacity == "absolute":
        return torch.full_like(tokens_G, moe.min_expert_capacity)
    factor = moe.capacity_factor if train else moe.eval_capacity_factor
    share_G = tokens_G.double() * factor / moe.num_experts
    slots_G = (share_G.round() if row.capacity == "half_even" else share_G.floor()).long()
    if row.capacity_limit == "group":
        slots_G = torch.minimum(slots_G, tokens_G)
    return slots_G.clamp(min=moe.min_expert_capacity if row.capacity_minimum == "setting" else 1)
