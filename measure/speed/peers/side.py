"""What is timed against what: one model's forward and backward pass, and its whole step."""

from __future__ import annotations

from dataclasses import dataclass

from measure.speed.timing import Work


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """One program at the configured shape."""

    name: str
    passes: Work  # forward, loss and backward; gradients are left as they were found: none
    step: Work | None = None  # the same and the update; None: there is none


class Absent(Exception):
    """A peer that cannot be timed here; the text says why."""
