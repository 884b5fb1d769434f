"""How to decode: command-line options shared by `fill` and `generate`, and what holds where nothing is typed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click

from conf.errors import ConfigError
from launch.commands.parameters import Number, option

if TYPE_CHECKING:
    from model.generate import GenerateOptions

_DEFAULTS: dict[str, Any] = {"beams": 1, "sample": False, "top_k": 0, "seed": 0}  # where `GenerateOptions` has others
_MOST_BEAMS = 1024  # each is a row of the batch, whose scores over the vocabulary are sorted
_MOST_TOKENS = 2**16  # attention compares every token with every other
_WHOLE = click.IntRange(0, 2**31 - 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoding:
    """How to decode, as it was asked for. None: what the model's own settings say, else the default.

    Greedy by default; `beams` above 1 searches; `sample` draws. For the other fields see `GenerateOptions`.
    """

    max_length: int | None = None
    min_length: int | None = None
    no_repeat_ngram: int | None = None
    repetition_penalty: float | None = None
    beams: int | None = None
    length_penalty: float | None = None
    length_rule: str | None = None
    early_stopping: str | None = None
    sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None  # 0: all
    top_p: float | None = None
    seed: int | None = None

    def options(self, *, max_length: int, own: Mapping[str, Any] | None = None) -> GenerateOptions:
        """The same as the model's generator takes it; `max_length` is the command's, `own` the model's own settings.

        Raises `ConfigError` for values out of range and for beams and sampling at once.
        """
        from model.generate import GenerateOptions

        typed = {name: value for name, value in asdict(self).items() if value is not None}
        if self.sample and self.beams is not None and self.beams > 1:
            got = f"--beams {self.beams} as well"
            raise ConfigError("--sample", got=got, needs="one of the two", hint="--beams 1")
        found = {**_DEFAULTS, "max_length": max_length, **(own or {}), **typed}
        if self.sample:
            found["beams"] = 1
        if "min_length" not in typed:  # the model's own, which was meant for its own longest text
            found["min_length"] = min(found.get("min_length", 0), max(found["max_length"] - 1, 0))
        found["top_k"] = found["top_k"] or None
        mode = "sample" if found.pop("sample") else "greedy"
        return GenerateOptions(**found, mode="beam" if found["beams"] > 1 else mode)


def takes_decoding(*, max_length: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: the function gets the fields of `Decoding`, each by its name."""
    rules, stops = click.Choice(("gnmt", "power")), click.Choice(("never", "true", "false"))
    options = (
        option("--beams", type=click.IntRange(1, _MOST_BEAMS), help="beam width; 1 (default) is greedy"),
        option("--length-penalty", type=Number(-100, 100), help="alpha of the length rule (default: 0.6)"),
        option("--length-rule", type=rules, help="beams are compared by log p / ((5 + n) / 6)**alpha, or / n**alpha"),
        option("--early-stopping", type=stops, help="of beams; never (default): when nothing open can still win"),
        option("--sample/--no-sample", default=None, help="draw tokens instead of taking the likeliest"),
        option(
            "--temperature", type=Number(0, 1e6, min_open=True), help="with --sample; below 1 is bolder (default: 1)"
        ),
        option("--top-k", type=_WHOLE, help="with --sample: only the k likeliest tokens; 0 (default): all"),
        option(
            "--top-p",
            type=Number(0, 1, min_open=True),
            help="with --sample: only the likeliest of this mass (default: 1)",
        ),
        option("--seed", type=click.IntRange(0, 2**63 - 1), help="with --sample (default: 0)"),
        option(
            "--max-length",
            type=click.IntRange(1, _MOST_TOKENS),
            help=f"generated tokens at most (default: {max_length})",
        ),
        option("--min-length", type=click.IntRange(0, _MOST_TOKENS), help="generated tokens at least (default: 0)"),
        option("--no-repeat-ngram", type=_WHOLE, help="no sequence of so many tokens twice; 0 (default): any"),
        option(
            "--repetition-penalty",
            type=Number(0, 1e6, min_open=True),
            help="above 1: tokens once said get less likely (default: 1)",
        ),
    )

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for add in reversed(options):
            function = add(function)
        return function

    return decorate
