"""The runs of `study headline`: every size and its dense twin, seed by seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from conf.derived.layers import NO_EXPERTS
from measure.studies.arguments import Study, common_overrides

if TYPE_CHECKING:
    from measure.studies.grid import Cell

STUDY = "headline"
# Unless a model is asked for: the default is mostly embedding, and experts are worth nothing to it (docs/log.md).
MODEL = "small_long"
DENSE = 1  # a dense model stands for one expert
METRICS = ("eval/loss_text", "eval/loss")


@dataclass(frozen=True, kw_only=True, slots=True)
class Headline(Study):
    """What this study is asked for."""

    out: Path = Path("runs") / STUDY
    steps: int = 1000
    experts: tuple[int, ...] = (2, 4, 8, 16)  # sizes
    lr: float = 4e-3  # at the end of warm-up
    warmup: int = 100  # steps


def cells(study: Headline) -> list[Cell]:
    """Every run, seed by seed, so that an interrupted study has whole seeds first."""
    from measure.studies.grid import Cell

    sizes = [DENSE, *study.experts]
    return [Cell(name=cell_name(n, seed), overrides=_overrides(n, seed, study)) for seed in study.seeds for n in sizes]


def cell_name(experts: int, seed: int) -> str:
    """Folder of one run."""
    return f"dense-s{seed}" if experts == DENSE else f"switch{experts}-s{seed}"


def _overrides(experts: int, seed: int, study: Headline) -> tuple[str, ...]:
    kind = NO_EXPERTS if experts == DENSE else (f"moe.num_experts={experts}",)
    chosen = any(line.startswith("model=") for line in study.overrides)
    return (
        *(() if chosen else (f"model={MODEL}",)),
        *common_overrides(study, seed=seed),
        *kind,
        # Groups as large as the semantics allow: in small ones the minimum capacity of 4 slots, not the capacity
        # factor, would decide what 16 experts compute.
        "moe.group_sequences=null",
        "schedule=rsqrt",
        f"schedule.lr={study.lr}",
        f"schedule.warmup_steps={study.warmup}",
    )
