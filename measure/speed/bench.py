"""`pointsman bench [WHAT...] [OVERRIDES]`: timings, each a ratio against a peer measured in the same run."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from conf.compose import compose
from conf.errors import ConfigError
from measure.speed.machine import commit, machine_line, software_line
from measure.speed.ranks import run_on_ranks
from measure.speed.result import Row, markdown_table, text_table
from measure.speed.setup import Settings


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """An entry of the table: what is measured, how, and where it makes no sense."""

    about: str
    run: Callable[[Settings], Iterable[Row]]
    refusal: Callable[[Settings], ConfigError | None] = lambda settings: None


def _layer(settings: Settings) -> Iterable[Row]:
    from measure.speed import layer

    return layer.run(settings)


def _router(settings: Settings) -> Iterable[Row]:
    from measure.speed import router

    return router.run(settings)


def _subnormals(settings: Settings) -> Iterable[Row]:
    from measure.speed import subnormals

    return subnormals.run(settings)


def _without_experts(settings: Settings) -> ConfigError | None:
    if settings.cfg.model.moe == "switch":
        return None
    return ConfigError("model.moe", got="dense", needs="experts, to hold against their dense twin", hint="switch")


def _without_exchange(settings: Settings) -> ConfigError | None:
    if settings.cfg.parallel.ep > 1:
        return None
    hint = "launch.nproc=2 parallel.ep=2"
    return ConfigError("parallel.ep", got=1, needs="2 or more: with 1 no buffer leaves its rank", hint=hint)


def _without_cpu(settings: Settings) -> ConfigError | None:
    if settings.device.type == "cpu":
        return None
    needs = "the CPU, where subnormal numbers are slow"
    return ConfigError("bench subnormals", got="an accelerator", needs=needs, hint="parallel.backend=gloo")


# Those that start ranks come first: while they run, this process holds no memory of an accelerator.
BENCHMARKS = {
    "step": Benchmark(
        about="a training step on launch.nproc ranks against that of the FLOP-matched dense twin",
        run=lambda settings: run_on_ranks("step", settings),
        refusal=_without_experts,
    ),
    "exchange": Benchmark(
        about="the all-to-all of expert buffers against a copy of the same bytes",
        run=lambda settings: run_on_ranks("exchange", settings),
        refusal=_without_exchange,
    ),
    "layer": Benchmark(
        about="the expert layer, forward and backward, against a dense layer and against a loop over experts",
        run=_layer,
    ),
    "router": Benchmark(about="each part of the expert layer as a share of the whole", run=_router),
    "subnormals": Benchmark(
        about="attention with and without flushing subnormal numbers (CPU)", run=_subnormals, refusal=_without_cpu
    ),
}


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    table = "\n".join(f"  {name:<12}{benchmark.about}" for name, benchmark in BENCHMARKS.items())
    result = argparse.ArgumentParser(
        prog="pointsman bench",
        usage="pointsman bench [WHAT...] [OVERRIDES] [--json FILE] [--markdown FILE] [--rounds N] [--threads N]",
        description=f"{__doc__}\n\nWHAT (all that make sense here when none is named)\n{table}",
        epilog="example: pointsman bench layer model=switch_base_8 train.precision=bf16 --json layer.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("words", nargs="*", metavar="WHAT|OVERRIDE", help="benchmarks and settings (Hydra's), mixed")
    result.add_argument("--json", type=Path, help="write every single measurement to this file")
    result.add_argument("--markdown", type=Path, help="write the result page to this file")
    result.add_argument("--rounds", type=int, default=9, help="measurements of each side (default 9)")
    result.add_argument("--threads", type=int, help="CPU threads of a rank (default launch.threads_per_rank, or 1)")
    return result


def heading(names: Sequence[str], settings: Settings) -> dict[str, str]:
    """What was run, of which code, on what."""
    words = [*names, *settings.overrides, "--rounds", str(settings.rounds), "--threads", str(settings.threads)]
    return {
        "command": "pointsman bench " + shlex.join(words),
        "commit": commit(),
        "machine": machine_line(settings.device, settings.threads),
        "software": software_line(),
    }


def split_words(words: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Benchmarks in the order of the table, and overrides; a ConfigError for a word that is neither."""
    overrides = tuple(word for word in words if "=" in word)
    named = [word for word in words if "=" not in word]
    for word in named:
        if word not in BENCHMARKS:
            raise ConfigError(
                "bench", got=word, needs="one of " + ", ".join(BENCHMARKS) + ", or FIELD=VALUE", hint="bench --help"
            )
    return [name for name in BENCHMARKS if name in named], overrides


def main(argv: Sequence[str]) -> int:
    """Run the command: print what is measured with what, a table for each benchmark, and write the files."""
    arguments = parser().parse_intermixed_args(list(argv))
    for name in ("rounds", "threads"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name}", got=value, needs="at least 1", hint=f"--{name} 3")
    names, overrides = split_words(arguments.words)
    settings = _settings(overrides, arguments)
    refused = {name: error for name in BENCHMARKS if (error := BENCHMARKS[name].refusal(settings)) is not None}
    for name in names:
        if name in refused:
            raise refused[name]
    names = names or [name for name in BENCHMARKS if name not in refused]
    head = heading(names, settings)
    print("\n".join(f"{key:<10}{value}" for key, value in head.items()), flush=True)
    rows: list[Row] = []
    for name in names:
        found = list(BENCHMARKS[name].run(settings))
        print(f"\n{name}: {BENCHMARKS[name].about}\n{text_table(found)}", flush=True)
        rows += found
    if arguments.json:
        content = {**head, "rows": [row.to_json() for row in rows]}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if arguments.markdown:
        arguments.markdown.write_text(page(head, rows), encoding="utf-8")
    return 0


def page(head: dict[str, str], rows: Sequence[Row]) -> str:
    """A result page: what was run on what, then a table for each benchmark."""
    names = list(dict.fromkeys(row.benchmark for row in rows))
    lines = [f"# {', '.join(names)}", ""]
    lines += ["Written by the command below; README.md in this folder says how ratios are formed.", ""]
    lines += [f"- {key}: `{value}`" if key == "command" else f"- {key}: {value}" for key, value in head.items()]
    for name in names:
        mine = [row for row in rows if row.benchmark == name]
        lines += ["", f"## {name}: {BENCHMARKS[name].about}", "", markdown_table(mine)]
    return "\n".join(lines) + "\n"


def _settings(overrides: tuple[str, ...], arguments: argparse.Namespace) -> Settings:
    cfg = compose(overrides)
    import torch

    from trainer.device import local_device

    threads = arguments.threads or cfg.launch.threads_per_rank or 1
    torch.set_num_threads(threads)
    device = local_device(cfg)
    return Settings(cfg=cfg, overrides=overrides, device=device, rounds=arguments.rounds, threads=threads)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
