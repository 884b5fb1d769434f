"""A run's validation curve and what is read off it: a value at a step, the first step at a value, a cut at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from conf.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """Losses (nats per token) at increasing optimizer steps, straight between two of them."""

    steps: tuple[int, ...]
    losses: tuple[float, ...]

    def __post_init__(self) -> None:
        assert len(self.steps) == len(self.losses) > 0, f"{len(self.steps)} steps, {len(self.losses)} losses"
        assert all(a < b for a, b in zip(self.steps, self.steps[1:], strict=False)), "steps must increase"

    @property
    def end(self) -> int:
        """Last step."""
        return self.steps[-1]

    @property
    def final(self) -> float:
        """Loss at the last step."""
        return self.losses[-1]

    def at(self, step: float) -> float | None:
        """Loss at `step`; None outside the curve, which is never extrapolated."""
        if not self.steps[0] <= step <= self.end:
            return None
        after = next(i for i, known in enumerate(self.steps) if known >= step)
        if self.steps[after] == step:
            return self.losses[after]
        low, high = self.steps[after - 1], self.steps[after]
        share = (step - low) / (high - low)
        return self.losses[after - 1] * (1 - share) + self.losses[after] * share

    def first_at(self, target: float) -> float | None:
        """First step (fractional) at which the loss is `target` or below; None where it never is."""
        if self.losses[0] <= target:
            return float(self.steps[0])
        pairs = zip(self.steps, self.losses, strict=True)
        step, loss = next(pairs)
        for next_step, next_loss in pairs:
            if next_loss <= target:
                return step + (next_step - step) * (loss - target) / (loss - next_loss)
            step, loss = next_step, next_loss
        return None


def curve_of(rows: Iterable[Mapping[str, Any]], metric: str, *, origin: Path) -> Curve:
    """The curve of `metric` (such as ``eval/loss_text``) in rows of `metrics.jsonl`.

    Raises DataError, naming `origin`, when no row has it or one of its values is not finite.
    """
    points = {int(row["step"]): row[metric] for row in rows if metric in row}
    if not points:
        raise DataError(f"{origin} has no {metric}: the run has not evaluated; try running the study again")
    for step, value in points.items():
        if value is None or not math.isfinite(value):
            raise DataError(f"{origin}: {metric} at step {step} is not finite; the run diverged; try a lower --lr")
    steps = tuple(sorted(points))
    return Curve(steps=steps, losses=tuple(float(points[step]) for step in steps))


class Spread(NamedTuple):
    """A number over seeds. `deviation` is the sample standard deviation, None for fewer than two values."""

    mean: float
    deviation: float | None
    low: float
    high: float

    def text(self, digits: int = 3) -> str:
        """`1.234 +- 0.005`."""
        if self.deviation is None:
            return f"{self.mean:.{digits}f}"
        return f"{self.mean:.{digits}f} +- {self.deviation:.{digits}f}"


def spread(values: Iterable[float]) -> Spread:
    """Mean, sample deviation and range of at least one value."""
    known = list(values)
    assert known, "no values"
    return Spread(fmean(known), stdev(known) if len(known) > 1 else None, min(known), max(known))
