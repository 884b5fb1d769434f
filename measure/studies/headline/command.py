"""`pointsman study headline`: Switch models of several sizes against their FLOP-matched dense twin, on real text.

The schedule is rsqrt, T5's and the paper's: its rate at a step does not depend on where the run ends, so that a loss in
the middle of a curve is what a shorter run would have ended with. Under a schedule that decays to its end the dense
model's final loss would have had the decay, and the others' losses on the way to it would not.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from conf.errors import ConfigError
from measure.studies.arguments import add_common_arguments, check_common_arguments
from measure.studies.headline.cells import DENSE, STUDY, cell_name, cells

_OWNED = ("model.moe=", "moe.num_experts=", "moe.group_sequences=", "schedule=", "schedule.name=", "schedule.lr=",
          "schedule.warmup_steps=")  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = argparse.ArgumentParser(
        prog=f"pointsman study {STUDY}",
        description="Train Switch models and their dense twin at equal steps, time a step of each, write the page.",
        epilog="Overrides come before the options. Interrupt at will: the same command runs only what is missing.",
    )
    add_common_arguments(result, study=STUDY, steps=1000)
    result.add_argument("--experts", type=int, nargs="+", default=[2, 4, 8, 16], help="sizes (default 2 4 8 16)")
    result.add_argument("--lr", type=float, default=4e-3, help="rate at the end of warm-up (default 0.004)")
    result.add_argument("--warmup", type=int, default=100, help="steps of warm-up (default 100)")
    return result


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    options = parser()
    arguments = options.parse_args(argv)
    check_common_arguments(arguments, owned=_OWNED)
    if any(size < 2 for size in arguments.experts) or len(set(arguments.experts)) != len(arguments.experts):
        raise ConfigError("--experts", got=arguments.experts, needs="different sizes of at least 2", hint="2 4 8 16")
    runs = cells(arguments)
    from measure.studies.grid import run_grid
    from measure.studies.headline.page import page
    from measure.studies.markdown import publish
    from measure.studies.step_times import measured

    run_grid(runs, arguments.out, at_once=arguments.at_once, say=print)
    first = arguments.seeds[0]
    timed = [cell_name(size, first) for size in (DENSE, *arguments.experts)]
    times = measured(arguments.out, timed, rounds=arguments.rounds, say=print)
    publish(page(arguments, options, times), STUDY, arguments.markdown)
    return 0
