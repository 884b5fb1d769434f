"""`pointsman config`: a configuration, what follows from it, what its fields mean; nothing is started."""

from __future__ import annotations

from pathlib import Path

import click
from click.shell_completion import CompletionItem

from conf.errors import ConfigError
from launch.commands.kinds import define
from launch.commands.known import complete_field
from launch.commands.output import OUTPUT, write_output
from launch.commands.parameters import option, takes_overrides


def _fields(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return complete_field(incomplete)


@define(
    examples=(
        "pointsman config",
        "pointsman config model=switch_base_128 launch.nproc=8 parallel.ep=8",
        "pointsman config --explain train.eval_every train.steps=500",
        "pointsman config --explain moe",
    )
)
@takes_overrides()
@option(
    "--explain",
    is_flag=False,
    flag_value="",
    metavar="[FIELD]",
    shell_complete=_fields,
    help="what a field or section means, its legal values, its value under these settings; without FIELD: all of them",
)
@option("--fields", is_flag=True, help="the same as --explain without FIELD")
@option("--markdown", type=OUTPUT, metavar="FILE", help="with --fields: write the page of all fields to this file")
def command(overrides: tuple[str, ...], explain: str | None, fields: bool, markdown: Path | None) -> int:
    """Print what follows from the settings, then all of them as YAML; refuse what `train` would refuse.

    The whole text is YAML: what follows is in comments.
    """
    if markdown is not None and not fields:
        raise ConfigError("--markdown", got=str(markdown), needs="--fields as well", hint="--fields --markdown FILE")
    if explain is not None and "=" in explain:  # --explain alone, before a setting
        overrides, explain = (explain, *overrides), ""
    if markdown is not None:
        from launch.commands.explain import page

        write_output(markdown, page())
    elif explain is not None or fields:
        from launch.commands.explain import explain as explained

        print(explained(explain or "", overrides))
    else:
        from conf.continued import compose_run
        from launch.describe import describe

        print(describe(compose_run(overrides)))
    return 0
