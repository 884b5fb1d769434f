"""What the studies' commands share: options, settings of every run, and a line that says how a page was made."""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Sequence
from pathlib import Path

from conf.errors import ConfigError
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


def add_common_arguments(parser: argparse.ArgumentParser, *, study: str, steps: int) -> None:
    """Options of every study."""
    parser.add_argument("overrides", nargs="*", help="settings of every run, e.g. data=text data.files='docs/*.txt'")
    parser.add_argument("--out", type=Path, default=Path("runs") / study, help="folder of the runs (default runs/NAME)")
    parser.add_argument("--steps", type=int, default=steps, help=f"optimizer steps of every run (default {steps})")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="seeds of weights and jitter")
    parser.add_argument("--eval-every", type=int, default=25, help="steps between evaluations (default 25)")
    parser.add_argument("--at-once", type=int, default=2, help="runs side by side, one thread each (default 2)")
    parser.add_argument("--rounds", type=int, default=20, help="rounds of the step timing, in turns (default 20)")
    parser.add_argument("--markdown", type=Path, help="page whose generated block is to be written")


def check_common_arguments(arguments: argparse.Namespace, *, owned: Sequence[str]) -> None:
    """Raise `ConfigError` for numbers out of range and for settings that the study itself varies or fixes."""
    for name in ("steps", "eval_every", "at_once", "rounds"):
        if getattr(arguments, name) < 1:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(flag, got=getattr(arguments, name), needs="at least 1", hint=f"{flag} 2")
    if len(set(arguments.seeds)) != len(arguments.seeds):
        raise ConfigError("--seeds", got=arguments.seeds, needs="different seeds", hint="--seeds 1 2 3")
    taken = {line.partition("=")[0] for line in (*COMMON, *owned)} | {"name", "runs_dir", "seed", "train.steps"}
    for line in arguments.overrides:
        key = line.partition("=")[0].lstrip("+~")
        if key in taken:
            raise ConfigError(key, got=line, needs="a setting that the study does not set itself", hint="its options")


def common_overrides(arguments: argparse.Namespace, *, seed: int) -> tuple[str, ...]:
    """Settings of one run, without those that the study varies."""
    return (
        *COMMON,
        f"seed={seed}",
        f"train.steps={arguments.steps}",
        f"train.eval_every={arguments.eval_every}",
        f"train.log_every={min(arguments.eval_every, 25)}",
        *arguments.overrides,
    )


def provenance(study: str, arguments: argparse.Namespace, parser: argparse.ArgumentParser, *, where: str) -> str:
    """Command, commit and hardware. Folders are left out: they say nothing about the numbers."""
    words = [f"pointsman study {study}"]
    for name, value in sorted(vars(arguments).items()):
        if name in ("out", "markdown", "overrides", "at_once"):
            continue
        if value != parser.get_default(name):
            shown = " ".join(map(str, value)) if isinstance(value, list) else str(value)
            words.append(f"--{name.replace('_', '-')} {shown}")
    shown = [line for line in arguments.overrides if not line.startswith(("data.files", "data.cache_dir"))]
    return f"Made by `{' '.join([*words, *shown])}` at commit `{_commit()}`; timed on {where}."


def _commit() -> str:
    try:
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+changes"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
