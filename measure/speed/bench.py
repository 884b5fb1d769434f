"""`pointsman bench [WHAT...] [OVERRIDES]`: timings, each a ratio against a peer measured in the same run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from conf.derived.layers import is_dense
from conf.errors import ConfigError
from conf.safety import shell
from launch.commands.kinds import define
from launch.commands.output import OUTPUT, write_output
from launch.commands.parameters import COUNT, PROCESSES, Overrides, option, takes_overrides

if TYPE_CHECKING:
    from measure.speed.result import Row
    from measure.speed.setup import Settings


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """An entry of the table: what is measured, how, and where it makes no sense."""

    about: str
    run: Callable[[Settings], Iterable[Row]]
    refusal: Callable[[Settings], ConfigError | None] = lambda settings: None
    dear: bool = False  # takes many minutes: run only where it is named


def _on_ranks(name: str) -> Callable[[Settings], Iterable[Row]]:
    def run(settings: Settings) -> Iterable[Row]:
        from measure.speed.ranks import run_on_ranks

        return run_on_ranks(name, settings)

    return run


def _peers(settings: Settings) -> Iterable[Row]:
    from measure.speed.peers.run import cases
    from measure.speed.ranks import run_on_ranks

    for case in cases(settings):  # in a process of its own each: what one has allocated does not serve the next
        yield from run_on_ranks("peers", case)


def _generation(settings: Settings) -> Iterable[Row]:
    from measure.speed.peers.generation import shaped
    from measure.speed.ranks import run_on_ranks

    return run_on_ranks("generation", shaped(settings))


def _pipeline(settings: Settings) -> Iterable[Row]:
    from data.prepare import prepare_data
    from measure.speed.ranks import run_on_ranks

    prepare_data(settings.cfg, progress=print)
    return run_on_ranks("pipeline", settings)


def _start(settings: Settings) -> Iterable[Row]:
    from measure.speed.around import start

    return start.run(settings)


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
    if not is_dense(settings.cfg):
        return None
    return ConfigError(
        "moe.sparse_every", got=0, needs="experts, to hold against their dense twin", hint="moe.sparse_every=2"
    )


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
        run=_on_ranks("step"),
        refusal=_without_experts,
    ),
    "peers": Benchmark(
        about="a step on one rank against its matrix products, its dense twin and Hugging Face's models",
        run=_peers,
        dear=True,
        refusal=_without_experts,
    ),
    "generation": Benchmark(
        about="tokens generated, against Hugging Face's Switch and against a model with the fewest experts",
        run=_generation,
        dear=True,
        refusal=_without_experts,
    ),
    "exchange": Benchmark(
        about="the all-to-all of expert buffers against a copy of the same bytes",
        run=_on_ranks("exchange"),
        refusal=_without_exchange,
    ),
    "pipeline": Benchmark(
        about="a batch made by one process of the data pipeline against the step that takes it",
        run=_pipeline,
    ),
    "start": Benchmark(about="the start of commands and ranks, as whole processes", run=_start),
    "layer": Benchmark(
        about="the expert layer, forward and backward, against a dense layer and against a loop over experts",
        run=_layer,
    ),
    "router": Benchmark(about="each part of the expert layer as a share of the whole", run=_router),
    "subnormals": Benchmark(
        about="attention with and without flushing subnormal numbers (CPU)", run=_subnormals, refusal=_without_cpu
    ),
}


class Words(Overrides):
    """Benchmarks and settings, mixed."""

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Benchmarks, then settings."""
        named = [CompletionItem(n, help=each.about) for n, each in BENCHMARKS.items() if n.startswith(incomplete)]
        return [*named, *super().shell_complete(ctx, incomplete)]


@define(
    notes="WHAT (when none is named, all that make sense here and take minutes at most)\n"
    + "\n".join(f"  {name:<12}{benchmark.about}" for name, benchmark in BENCHMARKS.items()),
    examples=("pointsman bench layer model=switch_base_8 train.precision=bf16 --json layer.json",),
)
@takes_overrides(of_new_run=False, cls=Words, metavar="[WHAT|OVERRIDE]...")
@option("--json", type=OUTPUT, metavar="FILE", help="write every single measurement to this file")
@option("--markdown", type=OUTPUT, metavar="FILE", help="write the result page to this file")
@option("--rounds", type=COUNT, default=9, help="measurements of each side")
@option("--threads", type=PROCESSES, help="CPU threads of a rank (default: launch.threads_per_rank, or 1)")
def command(
    overrides: tuple[str, ...], json: Path | None, markdown: Path | None, rounds: int, threads: int | None
) -> int:
    """Measure, each result a ratio against a peer measured in the same run."""
    if json is not None and markdown is not None and json.absolute() == markdown.absolute():
        needs = "another file than --json: one would replace the other"
        raise ConfigError("--markdown", got=str(markdown), needs=needs, hint=f"--markdown {markdown}.md")
    names, settings = split_words(overrides)
    bench(names, settings, rounds=rounds, threads=threads, json_file=json, markdown=markdown)
    return 0


def heading(names: Sequence[str], settings: Settings) -> dict[str, str]:
    """What was run, of which code, on what."""
    from measure.speed.machine import commit, machine_line, software_line

    words = [*names, *settings.overrides, "--rounds", str(settings.rounds), "--threads", str(settings.threads)]
    return {
        "command": shell.line(["pointsman", "bench", *words]),
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


def bench(
    names: Sequence[str],
    overrides: tuple[str, ...],
    *,
    rounds: int,
    threads: int | None = None,
    json_file: Path | None = None,
    markdown: Path | None = None,
) -> None:
    """Print what is measured with what and a table for each benchmark; write the files."""
    settings = _settings(overrides, rounds=rounds, threads=threads)
    refused = {name: error for name in BENCHMARKS if (error := BENCHMARKS[name].refusal(settings)) is not None}
    for name in names:
        if name in refused:
            raise refused[name]
    names = names or [name for name, each in BENCHMARKS.items() if name not in refused and not each.dear]
    _name_absent(names)
    head = heading(names, settings)
    print("\n".join(f"{key:<10}{value}" for key, value in head.items()), flush=True)
    from measure.speed.result import text_table

    rows: list[Row] = []
    for name in names:
        found = list(BENCHMARKS[name].run(settings))
        print(f"\n{name}: {BENCHMARKS[name].about}\n{text_table(found)}", flush=True)
        rows += found
    if json_file:
        content = {**head, "rows": [row.to_json() for row in rows]}
        write_output(json_file, json.dumps(content, indent=1) + "\n")
    if markdown:
        write_output(markdown, page(head, rows))


def _name_absent(names: Sequence[str]) -> None:
    from measure.speed.peers.layers import LAYERS
    from measure.speed.peers.library import PACKAGE
    from measure.speed.peers.side import absence

    wanted = {"peers": [PACKAGE], "generation": [PACKAGE], "layer": list(LAYERS)}
    for package in dict.fromkeys(package for name in names for package in wanted.get(name, [])):
        if (text := absence(package)) is not None:
            print(text, flush=True)


def page(head: dict[str, str], rows: Sequence[Row]) -> str:
    """A result page: what was run on what, then a table for each benchmark."""
    from measure.speed.result import markdown_table

    names = list(dict.fromkeys(row.benchmark for row in rows))
    lines = [f"# {', '.join(names)}", ""]
    lines += ["Written by the command below; README.md in this folder says how ratios are formed.", ""]
    lines += [f"- {key}: `{value}`" if key == "command" else f"- {key}: {value}" for key, value in head.items()]
    for name in names:
        mine = [row for row in rows if row.benchmark == name]
        lines += ["", f"## {name}: {BENCHMARKS[name].about}", "", markdown_table(mine)]
    return "\n".join(lines) + "\n"


def _settings(overrides: tuple[str, ...], *, rounds: int, threads: int | None) -> Settings:
    from conf.compose import compose

    cfg = compose(overrides)
    import torch

    from measure.speed.setup import Settings
    from trainer.device import local_device

    threads = threads or cfg.launch.threads_per_rank or 1
    torch.set_num_threads(threads)
    return Settings(cfg=cfg, overrides=overrides, device=local_device(cfg), rounds=rounds, threads=threads)
