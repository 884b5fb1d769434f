"""`pointsman study NAME`: finds the study that is meant. A new one is a row here and a folder with its command."""

from __future__ import annotations

import click

from conf.errors import ConfigError
from launch.commands.kinds import Group
from launch.commands.table import Row

STUDIES = (
    Row(
        "headline",
        "measure.studies.headline.command",
        "Switch with 2 to 16 experts against the FLOP-matched dense twin: loss, step and time speed-up",
    ),
    Row(
        "precision",
        "measure.studies.precision.command",
        "fp32, bf16 everywhere and bf16 with an fp32 router: loss, routing flips, speed",
    ),
)


@click.group(cls=Group, rows=STUDIES)
@click.pass_context
def command(ctx: click.Context) -> None:
    """Train the runs of a study that are missing, and write its page."""
    if ctx.invoked_subcommand is None:
        names = ", ".join(row.name for row in STUDIES)
        raise ConfigError("study", got="nothing", needs=f"one of {names}", hint=f"{ctx.command_path} --help")
