"""`pointsman generate RUN TEXT...`: the decoder's raw output for an input, greedy, sampled or by beam search."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from launch.commands.kinds import define
from launch.commands.parameters import FILE, option, takes_run
from trainer.commands.arguments import Decoding, takes_decoding
from trainer.commands.fill import read_texts


@define(examples=("pointsman generate runs/first 'def <extra_id_0>(self):' --sample --temperature 0.7",))
@takes_run
@click.argument("text", nargs=-1, metavar="[TEXT]...", help="inputs; none: one a line, from --file or standard input")
@option("--file", type=FILE, metavar="FILE", help="read texts from this file, one a line")
@option("--ids", is_flag=True, help="print token ids instead of text")
@option("--task", metavar="NAME", help="of an imported model: its settings and prefix for this task")
@takes_decoding(max_length=128)
def command(run: Path, text: tuple[str, ...], file: Path | None, ids: bool, task: str | None, **decoding: Any) -> int:
    """Generate target text for each input. Inputs may hold <extra_id_N> sentinels.

    A model imported from Hugging Face generates by the settings it came with; what is typed wins.
    """
    generate(run, read_texts(text, file), Decoding(**decoding), as_ids=ids, task=task)
    return 0


def generate(
    run: Path, texts: Sequence[str], decoding: Decoding, *, as_ids: bool = False, task: str | None = None
) -> None:
    """Print what a run's newest checkpoint generates for each text."""
    from trainer.commands.trained import load

    model = load(run)
    if note := model.generation_note(task):
        print(note, file=sys.stderr)
    for ids in model.generate_ids(texts, task=task, **asdict(decoding)):
        print(" ".join(map(str, ids)) if as_ids else model.tokenizer.decode(ids))
