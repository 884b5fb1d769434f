"""`pointsman prepare`: the tokenizer and the shards of a corpus, made before any run needs them."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from conf.safety import shell
from conf.sources import SOURCES
from launch.commands.kinds import define
from launch.commands.output import OUTPUT_FOLDER
from launch.commands.parameters import option, takes_overrides

if TYPE_CHECKING:
    from data.notice import Progress
    from data.prepare import Prepared


@define(
    examples=(
        "pointsman prepare --out shards data=text data.files='docs/*.jsonl'",
        "pointsman train data=shards data.files=shards",
    )
)
@takes_overrides()
@option("--out", type=OUTPUT_FOLDER, metavar="DIR", help="where the shards go (default: data.cache_dir)")
def command(overrides: tuple[str, ...], out: Path | None) -> int:
    """Train the tokenizer and turn documents into shards, in several processes; an interrupted run goes on.

    Streamed text (data=c4) is read as it is: its tokenizer and its validation text are made.
    """
    prepare(overrides, out=out)
    return 0


def prepare(overrides: Sequence[str], *, out: Path | None = None) -> None:
    """Make what training on these settings needs and print where it is."""
    from conf.continued import compose_run
    from data.corpus import open_corpus
    from data.prepare import prepare_data, prepare_finite

    cfg = compose_run(overrides)
    began = time.monotonic()
    show = _progress_line(sys.stderr.isatty())
    if SOURCES[cfg.data.source].kind != "documents":
        prepare_data(cfg, progress=show)
        print(f"data.source={cfg.data.source} is read as it is; the tokenizer and the validation text are ready")
        print(*open_corpus(cfg).notes, sep="\n")
        return
    prepared = prepare_finite(cfg.data, out=out, progress=show)
    print(_summary(prepared, time.monotonic() - began))


def _progress_line(terminal: bool) -> Progress:
    def show(text: str) -> None:
        print(f"\r\x1b[K{text}" if terminal else text, end="" if terminal else "\n", file=sys.stderr, flush=True)

    return show


def _summary(prepared: Prepared, seconds: float) -> str:
    from data.shards.shards import read_index
    from data.sources.finite import SPLITS

    index = read_index(prepared.folder)
    lines = [f"{prepared.folder} ({seconds:.1f} s)"]
    for split in SPLITS:
        shards = [shard for shard in index.shards if shard.split == split]
        documents, tokens = sum(shard.documents for shard in shards), sum(shard.tokens for shard in shards)
        size = sum(shard.text_bytes for shard in shards) / 1e6
        lines.append(f"  {split}: {documents:,} documents, {size:.1f} MB, {tokens:,} tokens, {len(shards)} shards")
    lines += prepared.notes
    if not any(shard.unknown for shard in index.shards):
        lines.append("unknown characters: none")
    lines.append(f"train on it with: {shell.line(['data=shards', f'data.files={prepared.folder}'])}")
    return "\n".join(lines)
