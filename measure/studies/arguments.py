"""What the studies' commands share: options, settings of every run, and a line that says how a page was made."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from conf.derived.layers import is_dense
from conf.errors import ConfigError
from conf.safety import shell
from conf.safety.redact import redact_text
from launch.commands.output import OUTPUT, OUTPUT_FOLDER
from launch.commands.parameters import COUNT, PROCESSES, option, takes_overrides
from launch.identity import ROOT

# One process and one thread a run, so that two fit on two cores. ZeRO has nothing to shard there.
COMMON = (
    "launch.nproc=1",
    "launch.threads_per_rank=1",
    "parallel.zero=0",
    "train.keep_last=1",
    "train.fill_samples=0",
    "logging.wandb=off",
    "logging.progress=off",
)


NOT_TOLD = ("out", "markdown", "overrides", "at_once")  # they say nothing about the numbers


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """What every study is asked for."""

    out: Path  # folder of the runs
    steps: int  # optimizer steps of every run
    overrides: tuple[str, ...] = ()  # settings of every run
    seeds: tuple[int, ...] = (1, 2, 3)  # of weights and jitter
    eval_every: int = 25  # steps
    at_once: int = 2  # runs side by side, one thread each
    rounds: int = 20  # of the step timing
    markdown: Path | None = None  # page whose generated block is to be written


def takes_study(default: Study) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: the function gets the fields of `Study`, each by its name."""
    options = (
        takes_overrides(),
        option("--out", type=OUTPUT_FOLDER, default=str(default.out), metavar="DIR", help="folder of the runs"),
        option("--steps", type=COUNT, default=default.steps, help="optimizer steps of every run"),
        option("--seeds", type=int, more=str.isdecimal, default=default.seeds, help="seeds of weights and jitter"),
        option("--eval-every", type=COUNT, default=default.eval_every, help="steps between evaluations"),
        option("--at-once", type=PROCESSES, default=default.at_once, help="runs side by side, one thread each"),
        option("--rounds", type=COUNT, default=default.rounds, help="rounds of the step timing, in turns"),
        option("--markdown", type=OUTPUT, metavar="FILE", help="page whose generated block is to be written"),
    )

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for add in reversed(options):
            function = add(function)
        return function

    return decorate


def check_study(study: Study, *, owned: Sequence[str]) -> None:
    """Raise `ConfigError` for equal seeds and for settings that the study itself varies or fixes."""
    if len(set(study.seeds)) != len(study.seeds):
        raise ConfigError("--seeds", got=study.seeds, needs="different seeds", hint="--seeds 1 2 3")
    taken = {line.partition("=")[0] for line in (*COMMON, *owned)} | {"name", "runs_dir", "seed", "train.steps"}
    for line in study.overrides:
        key = line.partition("=")[0].lstrip("+~")
        if key in taken:
            raise ConfigError(key, got=line, needs="a setting that the study does not set itself", hint="its options")
    from conf.compose import compose  # with Hydra, which help does not need

    if is_dense(compose(study.overrides)):
        raise ConfigError(
            "moe.sparse_every", got=0, needs="experts, which the study is about", hint="moe.sparse_every=2"
        )


def common_overrides(study: Study, *, seed: int) -> tuple[str, ...]:
    """Settings of one run, without those that the study varies."""
    return (
        *COMMON,
        f"seed={seed}",
        f"train.steps={study.steps}",
        f"train.eval_every={study.eval_every}",
        f"train.log_every={min(study.eval_every, 25)}",
        *study.overrides,
    )


def provenance(name: str, study: Study, default: Study, *, where: str) -> str:
    """Command, commit and hardware. Folders are left out: they say nothing about the numbers."""
    words = ["pointsman", "study", name]
    for field in sorted(field.name for field in fields(study) if field.name not in NOT_TOLD):
        value = getattr(study, field)
        if value != getattr(default, field):
            words += [f"--{field.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else (value,))]
    words += [line for line in study.overrides if not line.startswith(("data.files", "data.cache_dir"))]
    return f"Made by `{redact_text(shell.line(words))}` at commit `{_commit()}`; timed on {where}."


def _commit() -> str:
    try:
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+changes"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
