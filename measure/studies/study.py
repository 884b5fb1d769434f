"""`pointsman study NAME`: finds the study that is meant and runs it."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

STUDIES = {
    "headline": "Switch with 2 to 16 experts against the FLOP-matched dense twin: loss, step and time speed-up",
    "precision": "fp32, bf16 everywhere and bf16 with an fp32 router: loss, routing flips, speed",
}


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    lines = "\n".join(f"  {name:<10} {summary}" for name, summary in STUDIES.items())
    result = argparse.ArgumentParser(
        prog="pointsman study",
        description=f"Run a study and write its page.\n\nstudies\n{lines}",
        epilog="options of one: pointsman study NAME --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("study", choices=STUDIES)
    result.add_argument("arguments", nargs=argparse.REMAINDER, help="options of the study")
    return result


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    chosen = parser().parse_args(argv)
    return importlib.import_module(f"measure.studies.{chosen.study}.command").main(chosen.arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
