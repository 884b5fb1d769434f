"""Command-line options of decoding, shared by `fill` and `generate`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from conf.errors import ConfigError
from launch.commands.parameters import option

if TYPE_CHECKING:
    from model.generate import GenerateOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoding:
    """How to decode: greedy by default; `beams` above 1 searches; `sample` draws."""

    max_length: int
    beams: int = 1
    length_penalty: float = 0.6
    sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def options(self) -> GenerateOptions:
        """The same as the model's generator takes it; raises `ConfigError` for values out of range."""
        from model.generate import GenerateOptions

        if self.sample and self.beams > 1:
            got = f"--beams {self.beams} as well"
            raise ConfigError("--sample", got=got, needs="one of the two", hint="--beams 1")
        return GenerateOptions(
            mode="sample" if self.sample else "beam" if self.beams > 1 else "greedy",
            max_length=self.max_length,
            temperature=self.temperature,
            top_k=self.top_k or None,
            top_p=self.top_p,
            seed=self.seed,
            beams=self.beams,
            length_penalty=self.length_penalty,
        )


def takes_decoding(*, max_length: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: the function gets the fields of `Decoding`, each by its name."""
    default = Decoding(max_length=max_length)
    options = (
        option("--beams", type=int, default=default.beams, help="beam width; 1 is greedy"),
        option("--length-penalty", default=default.length_penalty, help="alpha of ((5 + length) / 6)**alpha"),
        option("--sample", is_flag=True, help="draw tokens instead of taking the likeliest"),
        option("--temperature", default=default.temperature, help="with --sample; below 1 is bolder"),
        option("--top-k", default=default.top_k, help="with --sample: only the k likeliest tokens; 0: all"),
        option("--top-p", default=default.top_p, help="with --sample: only the likeliest of this mass"),
        option("--seed", default=default.seed, help="with --sample"),
        option("--max-length", default=default.max_length, help="generated tokens"),
    )

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for add in reversed(options):
            function = add(function)
        return function

    return decorate
