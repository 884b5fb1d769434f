"""`pointsman generate RUN TEXT...`: the decoder's raw output for an input, greedy, sampled or by beam search."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launch.commands.kinds import define
from launch.commands.known import require_run
from launch.commands.parameters import option, takes_run
from trainer.commands.arguments import Decoding, takes_decoding
from trainer.commands.texts import read_texts, takes_texts, visible


@define(
    notes="Each output is printed on one line: a line break in it as \\n, a backslash as \\\\.",
    examples=("pointsman generate runs/first 'def <extra_id_0>(self):' --sample --temperature 0.7",),
)
@takes_run
@takes_texts("inputs")
@option("--ids", is_flag=True, help="print token ids instead of text")
@option("--task", metavar="NAME", help="of an imported model: its settings and prefix for this task")
@takes_decoding(max_length=128)
def command(
    run: Path,
    text: tuple[str, ...],
    file: Path | None,
    as_json: bool,
    ids: bool,
    task: str | None,
    **decoding: Any,
) -> int:
    """Generate target text for each input. Inputs may hold <extra_id_N> sentinels; <mask> is the next free one.

    A model imported from Hugging Face generates by the settings it came with; what is typed wins.
    """
    generate(run, read_texts(text, file), Decoding(**decoding), as_ids=ids, as_json=as_json, task=task)
    return 0


def generate(
    run: Path,
    texts: Sequence[str],
    decoding: Decoding,
    *,
    as_ids: bool = False,
    as_json: bool = False,
    task: str | None = None,
) -> None:
    """Print what a run's newest checkpoint generates for each text."""
    require_run(run)  # before torch is imported, which takes seconds
    from trainer.commands.trained import load

    model = load(run)
    if note := model.generation_note(task):
        print(note, file=sys.stderr)
    for text, ids in zip(texts, model.generate_ids(texts, task=task, **asdict(decoding)), strict=True):
        output = model.tokenizer.decode(ids)
        if as_json:
            print(json.dumps({"input": text, "text": output, "ids": ids}, ensure_ascii=False))
        else:
            print(" ".join(map(str, ids)) if as_ids else visible(output))
