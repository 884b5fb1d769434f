"""`pointsman generate RUN TEXT...`: the decoder's raw output for an input, greedy, sampled or by beam search."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from trainer.commands.arguments import add_decoding_arguments, decoding_options
from trainer.commands.fill import read_texts


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = argparse.ArgumentParser(
        prog="pointsman generate",
        description="Generate target text for each input. Inputs may hold <extra_id_N> sentinels.",
        epilog="example: pointsman generate runs/first 'def <extra_id_0>(self):' --sample --temperature 0.7",
    )
    result.add_argument("run", type=Path, help="run folder, or one checkpoint folder in it")
    result.add_argument("text", nargs="*", help="inputs; none: one per line from --file or standard input")
    result.add_argument("--file", type=Path, help="read inputs from this file, one per line")
    result.add_argument("--ids", action="store_true", help="print token ids instead of text")
    add_decoding_arguments(result, max_length=128)
    return result


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    arguments = parser().parse_args(argv)
    texts = read_texts(arguments.text, arguments.file)
    from data.batch import EOS_ID
    from trainer.commands.filling import encode_masked, generate_rows, has_mask
    from trainer.loading import load_run

    loaded = load_run(arguments.run)
    tokenizer = loaded.tokenizer
    rows = [encode_masked(tokenizer, text) if has_mask(text) else [*tokenizer.encode(text), EOS_ID] for text in texts]
    for ids in generate_rows(loaded.module, tokenizer, rows, decoding_options(arguments)):
        real = [token for token in ids if token > EOS_ID]
        print(" ".join(map(str, real)) if arguments.ids else tokenizer.decode(real))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
