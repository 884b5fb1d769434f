"""`pointsman study precision`: the same small model in fp32, in bf16 everywhere, and in bf16 with its router in fp32.

The last is selective precision (arXiv 2101.03961, section 2.4), what `train.precision=bf16` means here.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from measure.studies.arguments import add_common_arguments, check_common_arguments
from measure.studies.precision.cells import FP32, PRECISIONS, STUDY, cell_name, cells


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = argparse.ArgumentParser(
        prog=f"pointsman study {STUDY}",
        description="Train one model in three precisions, compare the routing of equal weights, time a step of each.",
        epilog="Overrides come before the options. Interrupt at will: the same command runs only what is missing.",
    )
    add_common_arguments(result, study=STUDY, steps=750)
    return result


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    options = parser()
    arguments = options.parse_args(argv)
    check_common_arguments(arguments, owned=("train.precision=", "moe.router_precision=", "model.moe="))
    from measure.studies.grid import run_grid
    from measure.studies.markdown import publish
    from measure.studies.precision.page import page
    from measure.studies.precision.routing import observe_all
    from measure.studies.step_times import measured

    run_grid(cells(arguments), arguments.out, at_once=arguments.at_once, say=print)
    names = [cell_name(precision, arguments.seeds[0]) for precision in PRECISIONS]
    times = measured(arguments.out, names, rounds=arguments.rounds, say=print)
    observed = {seed: observe_all(arguments.out / cell_name(FP32, seed), PRECISIONS) for seed in arguments.seeds}
    publish(page(arguments, options, times, observed), STUDY, arguments.markdown)
    return 0
