"""A configuration small enough to verify in seconds."""

from __future__ import annotations

from trainer.verify.plan import Plan, make_plan
from trainer.verify.verify import Verdict, verify

TINY = (
    "model.vocab_size=250",
    "data.tokenizer_vocab=200",
    "data.sentinels=50",
    "model.d_model=32",
    "model.d_ff=64",
    "model.d_kv=8",
    "model.num_heads=4",
    "moe.num_experts=4",
    "moe.capacity_factor=1.0",
    "moe.group_sequences=2",
    "train.global_batch=16",
)


def plan(*layouts: str, overrides: tuple[str, ...] = (), **settings) -> Plan:
    return make_plan([*TINY, *overrides], typed=layouts, **{"steps": 2, "timeout_s": 120.0, **settings})


def run(made: Plan, damage=None) -> dict[str, Verdict]:
    """Verdicts by layout."""
    verdicts = verify(made, say=lambda verdict: None, damage=damage)
    return {str(verdict.layout): verdict for verdict in verdicts}
