"""Routing groups: the sequences that a rank routes at once, how many of them are a group, its slots per expert."""

from __future__ import annotations

from conf.derived.topology import topology
from conf.routing.references import SEMANTICS
from conf.schema import MoeConfig, RawRunConfig, RunConfig


def micro_batch_size(cfg: RunConfig) -> int:
    """Sequences of one rank in one micro-batch."""
    return cfg.train.global_batch // (topology(cfg).dp * cfg.train.accumulation)


def auto_group_sequences(cfg: RawRunConfig) -> int:
    """Whole sequences per routing group by the rule of the semantics, evaluated on the global batch.

    The largest divisor of the global batch whose encoder tokens stay within the reference's group size; Hugging Face
    routes each sequence alone, and flaxformer makes at least as many groups as there are experts.
    """
    row = SEMANTICS[cfg.moe.semantics]
    limit = row.group_tokens // cfg.data.encoder_length
    batch = cfg.train.global_batch
    if row.group_floor == "num_experts":
        limit = min(limit, batch // cfg.moe.num_experts)
    return max((d for d in range(1, batch + 1) if batch % d == 0 and d <= limit), default=1)


def expert_capacity(moe: MoeConfig, group_tokens: int, *, train: bool) -> int:
    """Slots of one expert for one group of `group_tokens` tokens (rounding and bounds of the named semantics)."""
    row = SEMANTICS[moe.semantics]
    factor = moe.capacity_factor if train else moe.eval_capacity_factor
    if row.capacity == "absolute":
        return moe.min_expert_capacity  # Hugging Face's `expert_capacity` is an absolute number
    if row.capacity == "half_even":
        slots = round(factor * group_tokens / moe.num_experts)
    else:
        slots = int(group_tokens * factor / moe.num_experts)
    if row.capacity_limit == "group":
        slots = min(slots, group_tokens)
    return max(slots, moe.min_expert_capacity if row.capacity_minimum == "setting" else 1)


def slots_per_token(moe: MoeConfig, group_tokens: int, *, train: bool) -> float:
    """E * C / S: buffer rows computed per token; far above the capacity factor when the minimum capacity dominates."""
    return moe.num_experts * expert_capacity(moe, group_tokens, train=train) / group_tokens
