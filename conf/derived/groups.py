"""Routing groups: the sequences that a rank routes at once, how many of them are a group, its slots per expert."""

from __future__ import annotations

from conf.derived.topology import topology
from conf.derived.windows import stack_length
from conf.routing.settings import capacity_rule, experts_per_token, most_group_sequences
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
    if moe.capacity == "dropless":
        return group_tokens
    return capacity_rule(moe).slots(group_tokens, train=train)


def slots_per_token(cfg: RunConfig, stack: Stack, *, train: bool) -> float:
    """Rows that the experts of a layer compute per token: its choices where nothing is dropped, else E * C / S.

    The latter is far above the capacity factor where the minimum capacity dominates.
    """
    if cfg.moe.capacity == "dropless":
        return experts_per_token(cfg.moe, stack)
    tokens = group_tokens(cfg, stack)
    return cfg.moe.num_experts * expert_capacity(cfg.moe, tokens, train=train) / tokens
