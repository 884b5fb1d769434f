"""The runs of `study headline`: every size and its dense twin, seed by seed."""

from __future__ import annotations

import argparse

from measure.studies.arguments import common_overrides
from measure.studies.grid import Cell

STUDY = "headline"
# Unless a model is asked for: the default is mostly embedding, and experts are worth nothing to it (docs/log.md).
MODEL = "small_long"
DENSE = 1  # a dense model stands for one expert
METRICS = ("eval/loss_text", "eval/loss")


def cells(arguments: argparse.Namespace) -> list[Cell]:
    """Every run, seed by seed, so that an interrupted study has whole seeds first."""
    sizes = [DENSE, *arguments.experts]
    return [
        Cell(name=cell_name(n, seed), overrides=_overrides(n, seed, arguments))
        for seed in arguments.seeds
        for n in sizes
    ]


def cell_name(experts: int, seed: int) -> str:
    """Folder of one run."""
    return f"dense-s{seed}" if experts == DENSE else f"switch{experts}-s{seed}"


def _overrides(experts: int, seed: int, arguments: argparse.Namespace) -> tuple[str, ...]:
    kind = ("model.moe=dense",) if experts == DENSE else (f"moe.num_experts={experts}",)
    chosen = any(line.startswith("model=") for line in arguments.overrides)
    return (
        *(() if chosen else (f"model={MODEL}",)),
        *common_overrides(arguments, seed=seed),
        *kind,
        # Groups as large as the semantics allow: in small ones the minimum capacity of 4 slots, not the capacity
        # factor, would decide what 16 experts compute.
        "moe.group_sequences=null",
        "schedule=rsqrt",
        f"schedule.lr={arguments.lr}",
        f"schedule.warmup_steps={arguments.warmup}",
    )
