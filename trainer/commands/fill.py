"""`pointsman fill RUN TEXT...`: fill the masked spans of sentences typed, piped or read from a file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from conf.errors import ConfigError
from trainer.commands.arguments import add_decoding_arguments, decoding_options


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = argparse.ArgumentParser(
        prog="pointsman fill",
        description="Fill masked spans. Write <mask> (or <extra_id_0>, ...) where text is missing.",
        epilog="example: pointsman fill runs/first 'for i in <mask>(10):' --beams 4",
    )
    result.add_argument("run", type=Path, help="run folder, or one checkpoint folder in it")
    result.add_argument("text", nargs="*", help="texts with <mask>; none: one per line from --file or standard input")
    result.add_argument("--file", type=Path, help="read texts from this file, one per line")
    result.add_argument("--spans-only", action="store_true", help="print the filled spans, tab-separated")
    add_decoding_arguments(result, max_length=64)
    return result


def read_texts(texts: Sequence[str], file: Path | None) -> list[str]:
    """Texts from the command line, else the lines that are not blank of the file, else of standard input."""
    if texts:
        return list(texts)
    try:
        content = file.expanduser().read_text(encoding="utf-8") if file else sys.stdin.read()
    except (OSError, UnicodeDecodeError) as error:
        got = str(file) if file else "standard input"
        raise ConfigError("--file", got=got, needs=f"readable UTF-8 text ({error})", hint="another file") from error
    lines = [line for line in content.splitlines() if line.strip()]
    if not lines:
        raise ConfigError("TEXT", got="nothing", needs="at least one line of text", hint="'The <mask> sat on the mat'")
    return lines


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    arguments = parser().parse_args(argv)
    texts = read_texts(arguments.text, arguments.file)
    from trainer.commands.filling import fill_texts, split_masks, untrained_masks

    for text in texts:
        split_masks(text)  # a text without a mask is refused before seconds are spent on loading
    from trainer.loading import load_run

    loaded = load_run(arguments.run)
    note = untrained_masks(texts, loaded.cfg.data)
    if note:
        print(note, file=sys.stderr)
    for filled in fill_texts(loaded.module, loaded.tokenizer, texts, decoding_options(arguments)):
        print("\t".join(filled.spans) if arguments.spans_only else filled.text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
