"""Click's complaints about a command line as `ConfigError`s, so that they read like those about a setting."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import click

from conf.errors import ConfigError, PointsmanError
from conf.safety import shell
from launch.commands.parameters import Overrides, RunArgument


def in_our_words(error: click.UsageError, words: Sequence[str]) -> PointsmanError:
    """What is wrong, what is needed, what to try; `words` is what was typed."""
    ctx = error.ctx
    assert ctx is not None, "parse_args fills it in"
    if isinstance(error, click.NoSuchCommand):
        return unknown_command(ctx, error.command_name)
    if isinstance(error, click.NoSuchOption):
        return _unknown_option(ctx, error.option_name, words)
    if isinstance(error, click.MissingParameter) and error.param is not None:
        hint = error.param.hint() if isinstance(error.param, RunArgument) else _help(ctx)
        name = error.param.human_readable_name
        return ConfigError(name, got="nothing", needs=error.param.help or "a value", hint=hint)
    if isinstance(error, click.BadOptionUsage):
        return _bad_option(ctx, error.option_name)
    if isinstance(error, click.BadParameter) and error.param is not None:
        return PointsmanError(f"{error.param.human_readable_name}: {error.message.rstrip('.')}; try {_help(ctx)}")
    message = error.format_message().rstrip(".")
    return PointsmanError(f"{ctx.command_path}: {message[:1].lower()}{message[1:]}; try {_help(ctx)}")


def unknown_command(ctx: click.Context, name: str) -> ConfigError:
    """The error for a command that a group does not have."""
    assert isinstance(ctx.command, click.Group)
    known = ctx.command.list_commands(ctx)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"{ctx.command_path} {close[0]}" if close else _help(ctx)
    if "=" in name and ctx.parent is None:
        hint = f"{ctx.command_path} train {shell.word(name)}"
    field = "command" if ctx.parent is None else ctx.info_name or ""
    return ConfigError(field, got=name, needs="one of " + ", ".join(known), hint=hint)


def _unknown_option(ctx: click.Context, name: str, words: Sequence[str]) -> ConfigError:
    params = ctx.command.get_params(ctx)
    known = [text for param in params if isinstance(param, click.Option) for text in param.opts if len(text) > 2]
    close = difflib.get_close_matches(name, known, n=1)
    hint = close[0] if close else _help(ctx)
    typed = next((word for word in words if word.partition("=")[0] == name), name)
    if "=" in typed and not close and any(isinstance(param, Overrides) for param in params):
        hint = shell.word(typed.lstrip("-"))  # a setting typed like an option
    return ConfigError(ctx.command_path, got=name, needs="an option that it has: " + ", ".join(known), hint=hint)


def _bad_option(ctx: click.Context, name: str) -> ConfigError:
    """A value that is missing, or one for a switch."""
    found = next(param for param in ctx.command.get_params(ctx) if name in param.opts)
    assert isinstance(found, click.Option)
    if found.is_flag:
        return ConfigError(name, got="a value", needs="none: it is a switch", hint=name)
    value = found.make_metavar(ctx)
    return ConfigError(name, got="nothing", needs=f"{value}: {found.help}", hint=f"{name} {value}")


def _help(ctx: click.Context) -> str:
    return f"{ctx.command_path} --help"
