"""Parameters that commands share: overrides, a run, options with several values; and click's two kinds in our words."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import click
from click.shell_completion import CompletionItem

from conf.errors import ConfigError
from conf.reading.paths import user_path
from launch.commands.known import complete_override, complete_run, run_hint

F = TypeVar("F", bound=Callable[..., Any])


class UserPath(click.Path):
    """A path with `~` expanded; whether it exists is the command's business."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path; fails for an empty one, as of a variable that is not set, which would be the working directory."""
        if not os.fspath(value):
            self.fail("a path, and . for the working directory", param, ctx)
        return user_path(value)


class Number(click.FloatRange):
    """A number of a range; neither NaN, which lies in every range, nor infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail("", param, ctx)
        return number


FILE = UserPath()
FOLDER = UserPath(file_okay=False)
COUNT = click.IntRange(1, 10**9)
PROCESSES = click.IntRange(1, 1024)  # of one machine


class Option(click.Option):
    """An option whose wrong values are told as wrong settings are.

    `more` says of a word that follows whether it is a further value (`--seeds 1 2 3`); the function then gets a tuple.
    """

    def __init__(
        self, *args: Any, more: Callable[[str], bool] | None = None, multiple: bool = False, **settings: Any
    ) -> None:
        super().__init__(*args, multiple=multiple or more is not None, **settings)
        self.more = more

    def make_metavar(self, ctx: click.Context) -> str:
        """N for whole numbers, X for others."""
        letter = {"integer": "N", "integer range": "N", "float": "X", "float range": "X", "text": "TEXT"}
        text = self.metavar or letter.get(self.type.name) or super().make_metavar(ctx)
        return f"{text}..." if self.more else text

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        """The typed value; raises `ConfigError` where click would print its usage."""
        try:
            return super().type_cast_value(ctx, value)
        except click.BadParameter as error:
            got = " ".join(value) if isinstance(value, tuple) else value
            hint = f"{ctx.command_path} --help"
            raise ConfigError(self.opts[0], got=got, needs=_needs(self.type, error), hint=hint) from error


class Overrides(click.Argument):
    """Settings as FIELD=VALUE or GROUP=PRESET; of a run that is to come, or of one that exists."""

    def __init__(self, *args: Any, of_new_run: bool, **settings: Any) -> None:
        super().__init__(*args, nargs=-1, type=click.UNPROCESSED, **settings)
        self.of_new_run = of_new_run

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Fields, groups, presets, legal values."""
        return complete_override(incomplete)


class RunArgument(click.Argument):
    """A run folder or one of its checkpoints."""

    hint = staticmethod(run_hint)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The runs below ./runs, else folders."""
        return complete_run(incomplete) or [CompletionItem(incomplete, type="dir")]


def option(*names: str, **settings: Any) -> Callable[[F], F]:
    """Decorator: an option; see `Option`."""
    return click.option(*names, cls=Option, **settings)


def takes_overrides(
    *, of_new_run: bool = True, cls: type[Overrides] = Overrides, metavar: str = "[OVERRIDE]..."
) -> Callable[[F], F]:
    """Decorator: the function gets `overrides`, a tuple of words: those in files of `--config`, then the typed ones."""
    text = "settings: FIELD=VALUE or GROUP=PRESET, wherever among the options (`pointsman config --fields` lists them)"
    typed = click.argument("overrides", cls=cls, of_new_run=of_new_run, metavar=metavar, help=text)
    files = option("--config", type=FILE, multiple=True, metavar="FILE", help="a YAML file of settings; typed ones win")

    def decorate(function: F) -> F:
        @wraps(function)
        def with_settings(*, overrides: tuple[str, ...], config: tuple[Path, ...], **others: Any) -> Any:
            from conf.reading.setting_files import with_files  # not to read YAML's machinery for help

            return function(overrides=tuple(with_files(config, overrides)), **others)

        return typed(files(cast(F, with_settings)))

    return decorate


def takes_run(function: F) -> F:
    """Decorator: the function gets `run`, a path."""
    text = "a run folder, or one checkpoint folder in it"
    return click.argument("run", cls=RunArgument, type=FOLDER, metavar="RUN", help=text)(function)


def spread(params: Sequence[click.Parameter], words: Sequence[str]) -> list[str]:
    """`--seeds 1 2` as `--seeds 1 --seeds 2`, which is how click takes several values; other words stay."""
    several = {name: p.more for p in params if isinstance(p, Option) and p.more for name in p.opts}
    rest, result = list(words), []
    while rest and rest[0] != "--":
        word = rest.pop(0)
        result.append(word)
        name, equals, _ = word.partition("=")
        if name in several:
            result += [] if equals else rest[:1]
            rest = rest if equals else rest[1:]
            while rest and not rest[0].startswith("-"):
                result += [name, rest.pop(0)] if several[name](rest[0]) else [rest.pop(0)]
    return [*result, *rest]


def _needs(kind: click.ParamType, error: click.BadParameter) -> str:
    if isinstance(kind, click.IntRange | click.FloatRange):
        number = "a whole number" if isinstance(kind, click.IntRange) else "a number"
        least = f"above {kind.min}" if kind.min_open else f"at least {kind.min}"
        return f"{number}, {least}" if kind.max is None else f"{number}, {least} and at most {kind.max}"
    if isinstance(kind, click.Choice):
        return "one of " + ", ".join(map(str, kind.choices))
    return {click.INT.name: "a whole number", click.FLOAT.name: "a number"}.get(kind.name, error.message.rstrip("."))
