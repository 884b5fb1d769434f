"""Kinds of click commands: one form of help for all, `--debug` everywhere, subcommands imported when they are used."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import click
from click.shell_completion import CompletionItem

from launch.commands.overview import presets_table
from launch.commands.parameters import Option, Overrides, spread
from launch.commands.table import Row
from launch.identity import check_packages

SETTINGS = {"max_content_width": 118, "show_default": True}


class _Common(click.Command):
    """What commands and groups have in common."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, context_settings=dict(SETTINGS), add_help_option=False, **settings)
        # `launch.cli` looks for --debug itself, before anything is parsed: errors of parsing are to be shown as well.
        switch = partial(Option, is_flag=True, expose_value=False)
        self.params += [
            switch(["--debug"], help="show the traceback of an error"),
            switch(["-h", "--help"], is_eager=True, callback=_print_help, help="show this help"),
        ]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, with options that take several values (`--seeds 1 2 3`)."""
        try:
            return super().parse_args(ctx, spread(self.params, args))
        except click.UsageError as error:
            error.ctx = error.ctx or ctx  # the parser does not always say where it was
            raise


class Command(_Common):
    """A command whose docstring is its description; `notes` and `examples` are printed as they are, at the end."""

    def __init__(self, *args: Any, notes: str = "", examples: Sequence[str] = (), **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.notes, self.examples = inspect.cleandoc(notes), examples

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Usage, description, arguments, options, notes, examples, presets."""
        formatter.write_usage(ctx.command_path, " ".join(self.collect_usage_pieces(ctx)), prefix="usage: ")
        formatter.write(f"\n{inspect.cleandoc(self.help or '')}\n")
        _write_parameters(self, ctx, formatter)
        if self.notes:
            formatter.write(f"\n{self.notes}\n")
        if self.examples:
            formatter.write("\n".join(["", "examples", *(f"  {line}" for line in self.examples), ""]))
        if any(isinstance(param, Overrides) and param.of_new_run for param in self.params):
            formatter.write(f"\npresets\n{presets_table()}\n")


class Group(_Common, click.Group):
    """Commands by a table, whose modules are imported one at a time."""

    def __init__(
        self, *args: Any, rows: Sequence[Row], overview: Callable[[], str] | None = None, **settings: Any
    ) -> None:
        super().__init__(*args, invoke_without_command=True, **settings)
        self.rows, self.overview = {row.name: row for row in rows}, overview

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the table."""
        return list(self.rows)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a row, after making sure that it is imported from this project."""
        if cmd_name not in self.rows:
            return None
        check_packages()
        return importlib.import_module(self.rows[cmd_name].module).command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Names with their summaries; options. Imports no command."""
        found = [CompletionItem(row.name, help=row.summary) for row in self.rows.values()]
        named = [item for item in found if item.value.startswith(incomplete)]
        return [*named, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The overview, else usage, description and summaries."""
        if self.overview is not None:
            formatter.write(self.overview())
            return
        formatter.write_usage(ctx.command_path, f"NAME [OPTIONS] ...   {ctx.command_path} NAME --help", "usage: ")
        formatter.write(f"\n{inspect.cleandoc(self.help or '')}\n\nNAME\n")
        with formatter.indentation():
            formatter.write_dl([(row.name, row.summary) for row in self.rows.values()])
        _write_parameters(self, ctx, formatter)


def define(*, notes: str = "", examples: Sequence[str] = ()) -> Callable[[Callable[..., int]], click.Command]:
    """Decorator: the function as a command; it returns the exit code."""
    return click.command(cls=Command, notes=notes, examples=examples)


def _print_help(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        print(ctx.get_help())
        ctx.exit()


def _write_parameters(command: click.Command, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    for title, kind in (("arguments", click.Argument), ("options", click.Option)):
        shown = [param for param in command.get_params(ctx) if isinstance(param, kind)]
        records = [record for param in shown if (record := param.get_help_record(ctx)) is not None]
        if records:
            formatter.write(f"\n{title}\n")
            with formatter.indentation():
                formatter.write_dl(records)
