"""`pointsman verify-parallel`: shows that a configuration trains the same at every layout as in one process."""

from __future__ import annotations

import argparse
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from conf.errors import ConfigError
from conf.machine import gpus_at_hand
from measure.verify.layouts import KEYS
from measure.verify.plan import Plan, available_memory, check_memory, make_plan

_WORTH_TELLING_S = 30.0  # of the time that is left
_EPILOG = """\
layouts are settings in quotes: tp, dp, ep, etp, zero, acc (accumulation), recompute, ranks. What is left out is 1 for
tp and ep, tp for etp, all ranks for dp, and as in the configuration for the rest. Without --layouts a set of at most
16 is chosen in which settings occur in pairs; those the configuration cannot run are left out and the reason shown.

examples
  pointsman verify-parallel
  pointsman verify-parallel model=t5_small model.num_encoder_layers=2 train.global_batch=16 --layouts 'tp=2' 'zero=2'
  pointsman verify-parallel moe=flaxformer --layouts 'tp=2 ep=2 zero=1' 'ep=4 acc=2 recompute' --report report.json
  pointsman verify-parallel --ranks 8 --steps 2
  pointsman verify-parallel --fp64 --all --ranks 2

exit code: 0 every layout equals one process, 1 one differs or failed, 2 the command cannot run as it was given"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = argparse.ArgumentParser(
        prog="pointsman verify-parallel",
        description="Runs a few steps of a training configuration at several layouts and compares losses, routing, "
        "gradients, norm, parameters and optimizer state with one process without an engine.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="as for `pointsman train`")
    result.add_argument("--layouts", nargs="+", action="extend", default=[], metavar="LAYOUT", help="which to verify")
    result.add_argument("--all", action="store_true", help="every layout that fits, not a covering set")
    result.add_argument("--ranks", type=int, help="processes (default: what --layouts needs, the GPUs, or 4)")
    result.add_argument("--steps", type=int, default=3, help="optimizer steps of each layout (default 3)")
    result.add_argument("--fp64", action="store_true", help="the model in fp64 without an engine, held to 1e-10")
    result.add_argument("--timeout", type=float, default=300.0, help="seconds after which a layout hangs (300)")
    result.add_argument("--report", type=Path, metavar="FILE.json", help="write the result there too")
    return result


def main(argv: Sequence[str]) -> int:
    """Run the command; see the epilog for exit codes."""
    arguments = parser().parse_intermixed_args(list(argv))
    layouts, overrides = split_words(arguments.layouts)
    for name, least in (("ranks", 1), ("steps", 1), ("timeout", 1)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name}", got=value, needs=f"at least {least}", hint=f"--{name} 3")
    if layouts and arguments.all:
        raise ConfigError("--all", got="--layouts as well", needs="one of the two", hint="leaving --all out")
    if arguments.report is not None and not arguments.report.resolve().parent.is_dir():
        raise ConfigError("--report", got=str(arguments.report), needs="a file in a folder that exists")
    overrides = [*arguments.overrides, *overrides]
    gpus = _gpus(overrides)
    plan = make_plan(
        overrides,
        typed=layouts,
        everything=arguments.all,
        ranks=arguments.ranks,
        steps=arguments.steps,
        exact=arguments.fp64,
        timeout_s=arguments.timeout,
        gpus=gpus,
    )
    if gpus and plan.ranks > gpus:
        needs = f"at most {gpus}, the GPUs of this machine"
        raise ConfigError("--ranks", got=plan.ranks, needs=needs, hint="parallel.backend=gloo, which uses the CPU")
    check_memory(plan, available_memory(), what="this machine")
    return run(plan, arguments.report)


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Layouts, and overrides that stood behind them: words with one `=` whose key is no setting of a layout."""
    layouts: list[str] = []
    overrides: list[str] = []
    for word in words:
        key = word.partition("=")[0].strip().lstrip("+")
        is_override = "=" in word and ("." in key or (" " not in key and key not in (*KEYS, "acc", "world", "accum")))
        (overrides if is_override else layouts).append(word)
    return layouts, overrides


def run(plan: Plan, report_file: Path | None) -> int:
    """Verify and print; the exit code."""
    # Megatron-Core and torch warn at import about parts that are not used here.
    for module in ("megatron", "torch", "deepspeed"):
        warnings.filterwarnings("ignore", module=rf"{module}(\..*)?")
    # Only now: torch takes seconds to import, and a typo should not have to wait for it.
    from measure.verify import report
    from measure.verify.run_plan import Verdict, precision_of, verify

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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
