"""The text of `pointsman --help`."""

from __future__ import annotations

from collections.abc import Sequence

from conf.reading.presets import groups, presets
from launch.commands.table import COMMANDS


def overview() -> str:
    """Commands, how settings are typed, presets, first steps."""
    width = max(len(row.name) for row in COMMANDS)
    table = "\n".join(f"  {row.name:<{width}}  {row.summary}" for row in COMMANDS)
    return f"""\
Pointsman trains Switch Transformers with tensor, data and expert parallelism.

usage: pointsman COMMAND [OPTIONS] [OVERRIDE]...      pointsman COMMAND --help      pointsman --version

commands
{table}

overrides (Hydra's): a preset for a group, or a value for a field, anywhere among the options
  model=t5_small          take another file of the group conf/model/
  train.steps=1000        set one field; `pointsman config --fields` lists them all
  data.files='*.txt'      quote what the shell would expand
presets
{presets_table()}

first steps
  pointsman train                                   a small model on the text of Python's standard library
  pointsman fill runs/NAME "The <mask> of the list."   ask the model you have just trained
  pointsman config parallel.tp=2 launch.nproc=4     what a layout would be, without starting it
  pointsman config --explain train.eval_every       what a setting means

Everything a run writes lies in runs/<name>/; tokenizers and shards in data.cache_dir.
--debug (or POINTSMAN_DEBUG=1) shows the traceback of an error.
Exit codes: 0 done, 1 what was measured or checked failed, 2 something you can mend, 130 Ctrl-C, 128 + n signal n.
"""


def presets_table() -> str:
    """The groups with their presets, one group a line, wrapped."""
    return "\n".join(_wrapped(f"  {group}=", presets(group)) for group in groups())


def _wrapped(head: str, names: Sequence[str], *, width: int = 110) -> str:
    lines, line = [], head.ljust(12)
    for name in names:
        if len(line) + len(name) > width:
            lines.append(line.rstrip())
            line = " " * 12
        line += name + "  "
    return "\n".join([*lines, line.rstrip()])
