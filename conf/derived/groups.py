"""Routing groups: the sequences that a rank routes at once, how many of them are a group, its slots per expert."""

from __future__ import annotations

from conf.derived.topology import topology
from conf.derived.windows import stack_length
from conf.routing.settings import capacity_rule, most_group_sequences
from conf.schema import MoeConfig, RawRunConfig, RunConfig, Stack


def micro_batch_size(cfg: RunConfig) -> int:
    """Sequences of one rank in one micro-batch."""
    return cfg.train.global_batch // (topology(cfg).dp * cfg.train.accumulation)


def group_tokens(cfg: RunConfig, stack: Stack) -> int:
    """Tokens of one group of a stack: whole sequences."""
    return cfg.moe.group_sequences * stack_length(cfg.data, stack)


def auto_group_sequences(cfg: RawRunConfig) -> int:
    """Whole sequences per routing group by the rule of the semantics, evaluated on the global batch.

    The largest divisor of the global batch whose encoder tokens stay within the reference's group size; Hugging Face
    routes each sequence alone, and flaxformer makes at least as many groups as there are experts.
    """
    batch = cfg.train.global_batch
    limit = most_group_sequences(cfg.moe, length=cfg.data.encoder_length, batch=batch)
    return max((d for d in range(1, batch + 1) if batch % d == 0 and d <= limit), default=1)


def expert_capacity(moe: MoeConfig, group_tokens: int, *, train: bool) -> int:
    """Slots of one expert for one group of `group_tokens` tokens (rounding and bounds of the named semantics)."""
    return capacity_rule(moe).slots(group_tokens, train=train)


def slots_per_token(moe: MoeConfig, group_tokens: int, *, train: bool) -> float:
    """E * C / S: buffer rows computed per token; far above the capacity factor when the minimum capacity dominates."""
    return moe.num_experts * expert_capacity(moe, group_tokens, train=train) / group_tokens
