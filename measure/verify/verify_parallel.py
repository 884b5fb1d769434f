"""`pointsman verify-parallel`: shows that a configuration trains the same at every layout as in one process."""

from __future__ import annotations

import signal
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.errors import ConfigError
from conf.machine import available_memory, gpus_at_hand
from launch.commands.kinds import define
from launch.commands.output import OUTPUT
from launch.commands.parameters import COUNT, PROCESSES, Number, option, takes_overrides
from measure.verify.planning.layouts import KEYS

if TYPE_CHECKING:
    from measure.verify.planning.plan import Plan
    from measure.verify.run_plan import Verdict

_WORTH_TELLING_S = 30.0  # of the time that is left


def is_layout(word: str) -> bool:
    """Whether a word behind --layouts is one more: any but `key=value` whose key is no setting of a layout."""
    key = word.partition("=")[0].strip().lstrip("+")
    return "=" not in word or ("." not in key and (" " in key or key in (*KEYS, "acc", "world", "accum")))


@define(
    notes="""\
    layouts are settings in quotes: tp, dp, ep, etp, zero, acc (accumulation), recompute, compile, ranks. What is left
    out is 1 for tp and ep, tp for etp, all ranks for dp, and as in the configuration for the rest. Without --layouts a
    set of at most 16 is chosen in which settings occur in pairs; those the configuration cannot run are left out and
    the reason shown.

    exit code: 0 every layout equals one process, 1 one differs or failed, 2 the command cannot run as it was given""",
    examples=(
        "pointsman verify-parallel",
        "pointsman verify-parallel model=t5_small model.num_encoder_layers=2 train.global_batch=16 "
        "--layouts 'tp=2' 'zero=2'",
        "pointsman verify-parallel moe=flaxformer --layouts 'tp=2 ep=2 zero=1' 'ep=4 acc=2 recompute' --json r.json",
        "pointsman verify-parallel --ranks 8 --steps 2",
        "pointsman verify-parallel --fp64 --all --ranks 2",
    ),
)
@takes_overrides()
@option("--layouts", more=is_layout, metavar="LAYOUT", help="which to verify")
@option("--all", "everything", is_flag=True, help="every layout that fits, not a covering set")
@option("--ranks", type=PROCESSES, help="processes (default: what --layouts needs, the GPUs, or 4)")
@option("--steps", type=COUNT, default=3, help="optimizer steps of each layout")
@option("--fp64", is_flag=True, help="the model in fp64 without an engine, held to 1e-10")
@option("--timeout", type=Number(min=1, max=86_400), default=300.0, help="seconds after which a layout hangs")
@option("--json", "--report", type=OUTPUT, metavar="FILE", help="write the result there too")
def command(overrides: tuple[str, ...], json: Path | None, **options: Any) -> int:
    """Run a few steps of a training configuration at several layouts and compare each with one process.

    Losses, routing, gradients, norm, parameters and optimizer state are compared; the one process uses no engine.
    """
    return run(make_checked_plan(overrides, **options), json)


def make_checked_plan(
    overrides: Sequence[str],
    *,
    layouts: Sequence[str] = (),
    everything: bool = False,
    ranks: int | None = None,
    steps: int = 3,
    fp64: bool = False,
    timeout: float = 300.0,
) -> Plan:
    """What will be run; raises `ConfigError` for what this machine or the configuration cannot do."""
    from measure.verify.planning.plan import check_memory, make_plan

    if layouts and everything:
        raise ConfigError("--all", got="--layouts as well", needs="one of the two", hint="leaving --all out")
    gpus = _gpus(overrides)
    plan = make_plan(
        overrides,
        typed=layouts,
        everything=everything,
        ranks=ranks,
        steps=steps,
        exact=fp64,
        timeout_s=timeout,
        gpus=gpus,
    )
    if gpus and plan.ranks > gpus:
        needs = f"at most {gpus}, the GPUs of this machine"
        raise ConfigError("--ranks", got=plan.ranks, needs=needs, hint="parallel.backend=gloo, which uses the CPU")
    check_memory(plan, available_memory(), what="this machine")
    return plan


def run(plan: Plan, report_file: Path | None) -> int:
    """Verify and print; the exit code."""
    # Megatron-Core and torch warn at import about parts that are not used here.
    for module in ("megatron", "torch", "deepspeed"):
        warnings.filterwarnings("ignore", module=rf"{module}(\..*)?")
    # Only now: torch takes seconds to import, and a typo should not have to wait for it.
    from measure.verify import report
    from measure.verify.run_plan import precision_of, verify

    began, precision = time.monotonic(), precision_of(plan)
    _print(report.opening(plan))
    _print(["", *report.heading(precision)])

    left = len(plan.layouts)

    def say(verdict: Verdict) -> None:
        nonlocal left
        first, left = left == len(plan.layouts), left - 1
        _print(report.row(verdict))
        if first and verdict.seconds * left >= _WORTH_TELLING_S:
            _print(
                [f"    {left} more to go: about {report.duration(verdict.seconds * left)} if they are like this one"]
            )

    with _ended_by_signals():
        verdicts = verify(plan, say=say)
    _print(["", *report.closing(verdicts, precision), f"{time.monotonic() - began:.0f} s"])
    if report_file is not None:
        report.write_json(report_file, plan, verdicts)
        _print([f"report: {report_file}"])
    return 0 if all(verdict.status == "equal" for verdict in verdicts) else 1


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the command as Ctrl-C does: ranks are killed, the folder of the reference is removed."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    numbers = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) != signal.SIG_IGN]
    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _gpus(overrides: Sequence[str]) -> int:
    """GPUs that ranks may use: none where the backend is gloo."""
    if any(word.replace(" ", "") == "parallel.backend=gloo" for word in overrides):
        return 0
    return gpus_at_hand()


def _print(lines: Sequence[str]) -> None:
    print("\n".join(lines), flush=True)
