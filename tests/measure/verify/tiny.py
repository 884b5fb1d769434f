"""A configuration small enough to verify in seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

from measure.verify.planning.layouts import own_layout
from measure.verify.planning.plan import Plan, make_plan
from measure.verify.run_layout import RankRun
from measure.verify.run_plan import Verdict, verify

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


Defect = Callable[[RankRun], AbstractContextManager | None]  # does its damage, or returns what does it while entered


@dataclass(frozen=True, kw_only=True, slots=True)
class Planted:
    """Damage that plants a defect in the runs of each layout. A class, because it travels to the ranks."""

    defects: Mapping[str, Defect]

    @contextmanager
    def __call__(self, job: RankRun) -> Iterator[None]:
        with ExitStack() as stack:
            defect = self.defects[str(own_layout(job.cfg))](job)
            if defect is not None:
                stack.enter_context(defect)
            yield


def run(made: Plan, damage=None) -> dict[str, Verdict]:
    """Verdicts by layout."""
    verdicts = verify(made, say=lambda verdict: None, damage=damage)
    return {str(verdict.layout): verdict for verdict in verdicts}
