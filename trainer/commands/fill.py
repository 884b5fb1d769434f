"""`pointsman fill RUN TEXT...`: fill the masked spans of sentences typed, piped or read from a file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from conf.errors import ConfigError
from conf.safety.regular import read_regular
from launch.commands.kinds import define
from launch.commands.parameters import FILE, option, takes_run
from trainer.commands.arguments import Decoding, takes_decoding


@define(examples=("pointsman fill runs/first 'for i in <mask>(10):' --beams 4",))
@takes_run
@click.argument(
    "text", nargs=-1, metavar="[TEXT]...", help="texts with <mask>; none: one a line, from --file or standard input"
)
@option("--file", type=FILE, metavar="FILE", help="read texts from this file, one a line")
@option("--spans-only", is_flag=True, help="print the filled spans, tab-separated")
@takes_decoding(max_length=64)
def command(run: Path, text: tuple[str, ...], file: Path | None, spans_only: bool, **decoding: Any) -> int:
    """Fill masked spans. Write <mask> (or <extra_id_0>, ...) where text is missing."""
    fill(run, read_texts(text, file), Decoding(**decoding), spans_only=spans_only)
    return 0


def read_texts(texts: Sequence[str], file: Path | None) -> list[str]:
    """Texts from the command line, else the lines that are not blank of the file, else of standard input."""
    if texts:
        return list(texts)
    try:
        content = read_regular(file).decode("utf-8") if file else sys.stdin.read()
    except (OSError, UnicodeDecodeError) as error:
        got = str(file) if file else "standard input"
        raise ConfigError("--file", got=got, needs=f"readable UTF-8 text ({error})", hint="another file") from error
    lines = [line for line in content.splitlines() if line.strip()]
    if not lines:
        raise ConfigError("TEXT", got="nothing", needs="at least one line of text", hint="'The <mask> sat on the mat'")
    return lines


def fill(run: Path, texts: Sequence[str], decoding: Decoding, *, spans_only: bool = False) -> None:
    """Print the texts with their spans filled by a run's newest checkpoint, or the spans alone."""
    from trainer.commands.filling import split_masks, untrained_masks

    for text in texts:
        split_masks(text)  # a text without a mask is refused before seconds are spent on loading
    from trainer.commands.trained import load

    model = load(run)
    note = untrained_masks(texts, model.config.data)
    if note:
        print(note, file=sys.stderr)
    for filled in model.fill(texts, **asdict(decoding)):
        print("\t".join(filled.spans) if spans_only else filled.text)
