"""`pointsman study precision`: the same small model in fp32, in bf16 everywhere, and in bf16 with its router in fp32.

The last is selective precision (arXiv 2101.03961, section 2.4), what `train.precision=bf16` means here.
"""

from __future__ import annotations

from typing import Any

from launch.commands.kinds import define
from measure.studies.arguments import check_study, takes_study
from measure.studies.precision.cells import FP32, PRECISIONS, STUDY, PrecisionStudy, cell_name, cells

DEFAULT = PrecisionStudy()


@define(
    notes="Interrupt at will: the same command runs only what is missing.",
    examples=(
        "pointsman study precision --markdown docs/precision.md",
        "pointsman study precision data=text data.files='docs/*.txt' --steps 200 --seeds 1 2",
    ),
)
@takes_study(DEFAULT)
def command(**options: Any) -> int:
    """Train one model in three precisions, compare the routing of equal weights, time a step of each."""
    run(PrecisionStudy(**options))
    return 0


def run(study: PrecisionStudy) -> None:
    """Train what is missing, measure, publish."""
    check_study(study, owned=("train.precision=", "moe.router_precision="))
    from measure.studies.grid import run_grid
    from measure.studies.markdown import publish
    from measure.studies.precision.page import page
    from measure.studies.precision.routing import observe_all
    from measure.studies.step_times import measured

    run_grid(cells(study), study.out, at_once=study.at_once, say=print)
    names = [cell_name(precision, study.seeds[0]) for precision in PRECISIONS]
    times = measured(study.out, names, rounds=study.rounds, say=print)
    observed = {seed: observe_all(study.out / cell_name(FP32, seed), PRECISIONS) for seed in study.seeds}
    publish(page(study, times, observed), STUDY, study.markdown)
