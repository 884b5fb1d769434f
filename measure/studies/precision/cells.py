"""The runs of `study precision`: one model in three precisions, seed by seed."""

from __future__ import annotations

import argparse

from measure.studies.arguments import common_overrides
from measure.studies.grid import Cell

STUDY = "precision"
FP32, SELECTIVE, BF16 = "fp32", "bf16_router_fp32", "bf16"
PRECISIONS: dict[str, tuple[str, ...]] = {
    FP32: ("train.precision=fp32", "moe.router_precision=fp32"),
    SELECTIVE: ("train.precision=bf16", "moe.router_precision=fp32"),
    BF16: ("train.precision=bf16", "moe.router_precision=activation"),
}
TITLES = {FP32: "fp32", SELECTIVE: "bf16, router fp32 (selective)", BF16: "bf16 everywhere"}


def cells(arguments: argparse.Namespace) -> list[Cell]:
    """Every run, seed by seed, so that an interrupted study has whole seeds first."""
    return [
        Cell(name=cell_name(precision, seed), overrides=(*common_overrides(arguments, seed=seed), *settings))
        for seed in arguments.seeds
        for precision, settings in PRECISIONS.items()
    ]


def cell_name(precision: str, seed: int) -> str:
    """Folder of one run."""
    return f"{precision}-s{seed}"
