"""What a benchmark gives: rows that say what was compared with what, and the two ways to print them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from measure.speed.timing import Comparison


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison."""

    benchmark: str  # name on the command line
    case: str  # what was measured
    peer: str  # what it was measured against
    comparison: Comparison
    numbers: dict[str, float] = field(default_factory=dict)  # further results by name, unit included in the name

    def to_json(self) -> dict[str, Any]:
        """Everything, every single measurement included."""
        lower, upper = self.comparison.spread
        derived = {"ratio": self.comparison.ratio, "ratio_lower_quartile": lower, "ratio_upper_quartile": upper}
        return {**asdict(self), **derived}


_HEAD = ("what", "against", "ratio", "quartiles", "ours", "peer", "rounds", "more")


def cells(row: Row) -> tuple[str, ...]:
    """The row as texts, one for each column."""
    lower, upper = row.comparison.spread
    return (
        row.case,
        row.peer,
        f"{row.comparison.ratio:.3f}",
        f"{lower:.3f} .. {upper:.3f}",
        _seconds(row.comparison.ours_seconds),
        _seconds(row.comparison.peer_seconds),
        str(len(row.comparison.ratios)),
        ", ".join(f"{name} {_number(value)}" for name, value in row.numbers.items()),
    )


def text_table(rows: Sequence[Row]) -> str:
    """For a terminal: aligned columns, a line for each row."""
    lines = [_HEAD, *map(cells, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
                     for line in lines)  # fmt: skip


def markdown_table(rows: Sequence[Row]) -> str:
    """For a page."""
    lines = [_HEAD, ("---",) * len(_HEAD), *map(cells, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _seconds(value: float) -> str:
    for scale, unit in ((1.0, "s"), (1e-3, "ms")):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value * 1e6:.3g} us"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
