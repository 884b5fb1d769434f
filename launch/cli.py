"""The `pointsman` command: finds the command that is meant and runs it. Imports neither torch nor Hydra by itself."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

import click

from conf.errors import SetupError
from conf.safety.streams import redact_streams
from launch.commands import completion
from launch.commands.kinds import Group
from launch.commands.overview import overview
from launch.commands.table import COMMANDS
from launch.commands.usage import in_our_words
from launch.process import DEBUG_VARIABLE, guarded
from launch.ranks.bound import end_with_starter
from launch.ranks.surroundings import settle_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Exit code: the command's own; 2 for what the user can mend; 130 after Ctrl-C."""
    if argv is None:
        redact_streams(unknown="strict")  # a script or an answer is printed as it is or not at all
    end_with_starter()
    words = list(sys.argv[1:] if argv is None else argv)
    if "--debug" in words[: words.index("--") if "--" in words else None]:
        os.environ[DEBUG_VARIABLE] = "1"
    try:
        return guarded(lambda: _printed(run(words)))
    except BrokenPipeError:  # the reader (`| head`) has had enough; what is still buffered must not complain either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _printed(code: int) -> int:
    sys.stdout.flush()
    return code


def run(words: Sequence[str]) -> int:
    """Run one command and return its exit code; what is wrong with `words` is raised as a `PointsmanError`."""
    settle_command()
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    try:
        if instruction := os.environ.get(completion.VARIABLE):
            return completion.complete(pointsman, instruction)
        with pointsman.make_context("pointsman", list(words)) as ctx:
            _check_working_directory()
            return pointsman.invoke(ctx) or 0
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.UsageError as error:
        raise in_our_words(error, words) from error


def _check_working_directory() -> None:
    """Raise SetupError where it was removed: paths mean nothing there, and libraries fail in ways of their own."""
    try:
        os.getcwd()
    except OSError as error:
        text = f"working directory: got one that cannot be used ({error.strerror}); needs one that exists; try cd ~"
        raise SetupError(text) from error


def _print_version(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        print(f"pointsman {version('pointsman')}")
    except PackageNotFoundError:
        print("pointsman (not installed: run `pip install -e .` in its folder)")
    ctx.exit()


@click.group(cls=Group, rows=COMMANDS, overview=overview)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="the version")
@click.pass_context
def pointsman(ctx: click.Context) -> None:
    """Train Switch Transformers."""
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


if __name__ == "__main__":
    sys.exit(main())
