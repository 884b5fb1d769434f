"""The runs of `study precision`: one model in three precisions, seed by seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from measure.studies.arguments import Study, common_overrides

if TYPE_CHECKING:
    from measure.studies.grid import Cell

STUDY = "precision"
FP32, SELECTIVE, BF16 = "fp32", "bf16_router_fp32", "bf16"
PRECISIONS: dict[str, tuple[str, ...]] = {
    FP32: ("train.precision=fp32", "moe.router_precision=fp32"),
    SELECTIVE: ("train.precision=bf16", "moe.router_precision=fp32"),
    BF16: ("train.precision=bf16", "moe.router_precision=activation"),
}
TITLES = {FP32: "fp32", SELECTIVE: "bf16, router fp32 (selective)", BF16: "bf16 everywhere"}


@dataclass(frozen=True, kw_only=True, slots=True)
class PrecisionStudy(Study):
    """What this study is asked for."""

    out: Path = Path("runs") / STUDY
    steps: int = 750


def cells(study: PrecisionStudy) -> list[Cell]:
    """Every run, seed by seed, so that an interrupted study has whole seeds first."""
    from measure.studies.grid import Cell

    return [
        Cell(name=cell_name(precision, seed), overrides=(*common_overrides(study, seed=seed), *settings))
        for seed in study.seeds
        for precision, settings in PRECISIONS.items()
    ]


def cell_name(precision: str, seed: int) -> str:
    """Folder of one run."""
    return f"{precision}-s{seed}"
