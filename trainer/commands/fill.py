"""`pointsman fill RUN TEXT...`: fill the masked spans of sentences typed, piped or read from a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launch.commands.kinds import define
from launch.commands.parameters import option, takes_run
from trainer.commands.arguments import Decoding, takes_decoding
from trainer.commands.texts import read_texts, takes_texts, visible


@define(
    notes="Each text is printed on one line: a line break in it as \\n, a backslash as \\\\.",
    examples=("pointsman fill runs/first 'for i in <mask>(10):' --beams 4",),
)
@takes_run
@takes_texts("texts with <mask>")
@option("--spans-only", is_flag=True, help="print the filled spans, tab-separated")
@takes_decoding(max_length=64)
def command(
    run: Path, text: tuple[str, ...], file: Path | None, as_json: bool, spans_only: bool, **decoding: Any
) -> int:
    """Fill masked spans. Write <mask> (or <extra_id_0>, ...) where text is missing."""
    fill(run, read_texts(text, file), Decoding(**decoding), spans_only=spans_only, as_json=as_json)
    return 0


def fill(
    run: Path, texts: Sequence[str], decoding: Decoding, *, spans_only: bool = False, as_json: bool = False
) -> None:
    """Print the texts with their spans filled by a run's newest checkpoint, or the spans alone."""
    from trainer.commands.filling import split_masks, untrained_masks

    for text in texts:
        split_masks(text)  # a text without a mask is refused before seconds are spent on loading
    from trainer.commands.trained import load

    model = load(run)
    note = untrained_masks(texts, model.config.data)
    if note:
        print(note, file=sys.stderr)
    for text, filled in zip(texts, model.fill(texts, **asdict(decoding)), strict=True):
        if as_json:
            print(json.dumps({"input": text, "text": filled.text, "spans": filled.spans}, ensure_ascii=False))
        else:
            print("\t".join(map(visible, filled.spans)) if spans_only else visible(filled.text))
