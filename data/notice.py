"""What a person is told while work goes on: where it stands, and what should be known although nothing stops for it."""

from __future__ import annotations

import sys
from collections.abc import Callable

Progress = Callable[[str], None]  # is given where long work stands, again and again


def silent(text: str) -> None:
    """A `Progress` that tells nothing."""


def notice(text: str) -> None:
    """Print `note: <text>` on stderr, from whichever process."""
    print(f"note: {text}", file=sys.stderr, flush=True)
