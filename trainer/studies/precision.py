"""`pointsman study precision`: the same small model in fp32, in bf16 everywhere, and in bf16 with its router in fp32.

The last is selective precision (arXiv 2101.03961, section 2.4), what `train.precision=bf16` means here.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from trainer.studies.arguments import add_common_arguments, check_common_arguments, common_overrides
from trainer.studies.grid import Cell

STUDY = "precision"
FP32, SELECTIVE, BF16 = "fp32", "bf16_router_fp32", "bf16"
PRECISIONS: dict[str, tuple[str, ...]] = {
    FP32: ("train.precision=fp32", "moe.router_precision=fp32"),
    SELECTIVE: ("train.precision=bf16", "moe.router_precision=fp32"),
    BF16: ("train.precision=bf16", "moe.router_precision=activation"),
}
TITLES = {FP32: "fp32", SELECTIVE: "bf16, router fp32 (selective)", BF16: "bf16 everywhere"}


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = argparse.ArgumentParser(
        prog=f"pointsman study {STUDY}",
        description="Train one model in three precisions, compare the routing of equal weights, time a step of each.",
        epilog="Overrides come before the options. Interrupt at will: the same command runs only what is missing.",
    )
    add_common_arguments(result, study=STUDY, steps=750)
    return result


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


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    options = parser()
    arguments = options.parse_args(argv)
    check_common_arguments(arguments, owned=("train.precision=", "moe.router_precision=", "model.moe="))
    from trainer.studies.grid import run_grid
    from trainer.studies.page import publish
    from trainer.studies.precision_page import page
    from trainer.studies.precision_routing import observe_all
    from trainer.studies.timing import measured

    run_grid(cells(arguments), arguments.out, at_once=arguments.at_once, say=print)
    names = [cell_name(precision, arguments.seeds[0]) for precision in PRECISIONS]
    times = measured(arguments.out, names, rounds=arguments.rounds, say=print)
    observed = {seed: observe_all(arguments.out / cell_name(FP32, seed), PRECISIONS) for seed in arguments.seeds}
    publish(page(arguments, options, times, observed), STUDY, arguments.markdown)
    return 0
