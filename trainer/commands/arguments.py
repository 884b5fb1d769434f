"""Command-line options of decoding, shared by `fill` and `generate`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from conf.errors import ConfigError

if TYPE_CHECKING:
    from model.generate import GenerateOptions


def add_decoding_arguments(parser: argparse.ArgumentParser, *, max_length: int) -> None:
    """Greedy by default; `--beams` above 1 searches; `--sample` draws."""
    group = parser.add_argument_group("decoding")
    group.add_argument("--beams", type=int, default=1, help="beam width; 1 is greedy (default)")
    group.add_argument("--length-penalty", type=float, default=0.6, help="alpha of ((5 + length) / 6)**alpha")
    group.add_argument("--sample", action="store_true", help="draw tokens instead of taking the likeliest")
    group.add_argument("--temperature", type=float, default=1.0, help="with --sample; below 1 is bolder")
    group.add_argument("--top-k", type=int, default=0, help="with --sample: only the k likeliest tokens; 0: all")
    group.add_argument("--top-p", type=float, default=1.0, help="with --sample: only the likeliest of this mass")
    group.add_argument("--seed", type=int, default=0, help="with --sample")
    group.add_argument("--max-length", type=int, default=max_length, help=f"generated tokens (default {max_length})")


def decoding_options(arguments: argparse.Namespace) -> GenerateOptions:
    """The options as the model's generator takes them; raises `ConfigError` for values out of range."""
    from model.generate import GenerateOptions

    if arguments.sample and arguments.beams > 1:
        raise ConfigError(
            "--sample", got=f"--beams {arguments.beams} as well", needs="one of the two", hint="--beams 1"
        )
    return GenerateOptions(
        mode="sample" if arguments.sample else "beam" if arguments.beams > 1 else "greedy",
        max_length=arguments.max_length,
        temperature=arguments.temperature,
        top_k=arguments.top_k or None,
        top_p=arguments.top_p,
        seed=arguments.seed,
        beams=arguments.beams,
        length_penalty=arguments.length_penalty,
    )
