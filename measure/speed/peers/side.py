"""What is timed against what: one model's forward and backward pass, and its whole step."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from measure.speed.timing import Work


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """One program at the configured shape."""

    name: str
    passes: Work  # forward, loss and backward; gradients are left as they were found: none
    step: Work | None = None  # the same and the update; None: there is none


def absence(package: str) -> str | None:
    """That a package is not installed, and how to get it; None: it is there."""
    if importlib.util.find_spec(package) is not None:
        return None
    return f"{package} is not installed, and is left out: pip install 'pointsman[bench]'"
