"""`pointsman study headline`: Switch models of several sizes against their FLOP-matched dense twin, on real text.

The schedule is rsqrt, after a warm-up T5's and the paper's: its rate at a step does not depend on where the run ends,
so that a loss in the middle of a curve is what a shorter run would have ended with. Under a schedule that decays to its
end the dense model's final loss would have had the decay, and the others' losses on the way to it would not.
"""

from __future__ import annotations

from typing import Any

from conf.errors import ConfigError
from launch.commands.kinds import define
from launch.commands.parameters import option
from measure.studies.arguments import check_study, takes_study
from measure.studies.headline.cells import DENSE, STUDY, Headline, cell_name, cells

_OWNED = ("moe.num_experts=", "moe.group_sequences=", "schedule=", "schedule.name=", "schedule.lr=",
          "schedule.warmup_steps=")  # fmt: skip


DEFAULT = Headline()


@define(
    notes="Interrupt at will: the same command runs only what is missing.",
    examples=(
        "pointsman study headline --markdown docs/headline.md",
        "pointsman study headline model=small data=text data.files='docs/*.txt' --steps 200 --experts 2 4 --seeds 1",
    ),
)
@takes_study(DEFAULT)
@option("--experts", type=int, more=str.isdecimal, default=DEFAULT.experts, help="sizes")
@option("--lr", default=DEFAULT.lr, help="rate at the end of warm-up")
@option("--warmup", default=DEFAULT.warmup, help="steps of warm-up")
def command(**options: Any) -> int:
    """Train Switch models and their dense twin at equal steps, time a step of each, write the page."""
    run(Headline(**options))
    return 0


def run(study: Headline) -> None:
    """Train what is missing, measure, publish."""
    check_study(study, owned=_OWNED)
    if any(size < 2 for size in study.experts) or len(set(study.experts)) != len(study.experts):
        raise ConfigError("--experts", got=study.experts, needs="different sizes of at least 2", hint="2 4 8 16")
    from measure.studies.grid import run_grid
    from measure.studies.headline.page import page
    from measure.studies.markdown import publish
    from measure.studies.step_times import measured

    run_grid(cells(study), study.out, at_once=study.at_once, say=print)
    first = study.seeds[0]
    timed = [cell_name(size, first) for size in (DENSE, *study.experts)]
    times = measured(study.out, timed, rounds=study.rounds, say=print)
    publish(page(study, times), STUDY, study.markdown)
