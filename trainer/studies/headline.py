"""`pointsman study headline`: Switch models of several sizes against their FLOP-matched dense twin, on real text.

The schedule is rsqrt, T5's and the paper's: its rate at a step does not depend on where the run ends, so that a loss in
the middle of a curve is what a shorter run would have ended with. Under a schedule that decays to its end the dense
model's final loss would have had the decay, and the others' losses on the way to it would not.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from conf.errors import ConfigError
from trainer.studies.arguments import add_common_arguments, check_common_arguments, common_overrides
from trainer.studies.grid import Cell

STUDY = "headline"
# Unless a model is asked for: the default is mostly embedding, and experts are worth nothing to it (docs/log.md).
MODEL = "small_long"
DENSE = 1  # a dense model stands for one expert
METRICS = ("eval/loss_text", "eval/loss")
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


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    options = parser()
    arguments = options.parse_args(argv)
    check_common_arguments(arguments, owned=_OWNED)
    if any(size < 2 for size in arguments.experts) or len(set(arguments.experts)) != len(arguments.experts):
        raise ConfigError("--experts", got=arguments.experts, needs="different sizes of at least 2", hint="2 4 8 16")
    runs = cells(arguments)
    from trainer.studies.grid import run_grid
    from trainer.studies.headline_page import page
    from trainer.studies.page import publish
    from trainer.studies.timing import measured

    run_grid(runs, arguments.out, at_once=arguments.at_once, say=print)
    first = arguments.seeds[0]
    timed = [cell_name(size, first) for size in (DENSE, *arguments.experts)]
    times = measured(arguments.out, timed, rounds=arguments.rounds, say=print)
    publish(page(arguments, options, times), STUDY, arguments.markdown)
    return 0
