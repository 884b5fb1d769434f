"""What a person should know although nothing stops for it: a line on stderr, from whichever process."""

from __future__ import annotations

import sys


def notice(text: str) -> None:
    """Print `note: <text>`."""
    print(f"note: {text}", file=sys.stderr, flush=True)
