"""The headline's arithmetic: how many steps and how much time a model saves to the dense model's final loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from conf.errors import DataError
from measure.studies.curve import Curve, Spread, spread


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One model against the dense twin, over seeds that are paired: same seed, same data."""

    final: Spread  # loss at equal steps: at the dense model's last step
    equal_time: Spread | None  # loss when the dense model's time is up; None: some seed's curve does not reach so far
    step_speed_up: Spread | None  # dense steps / steps to the dense model's final loss; None: no seed gets there
    time_speed_up: Spread | None
    reached: int  # seeds that get to the dense model's final loss
    seeds: int


def step_speed_up(dense: Curve, other: Curve) -> float | None:
    """Dense steps per step of `other` to the dense model's final loss, the first time it is there; None: never.

    Raises DataError when the dense model has not learned anything that could be reached sooner.
    """
    step = other.first_at(dense.final)
    if step is None:
        return None
    if step <= 0 or dense.end <= 0:
        raise DataError(
            f"the dense model's final loss {dense.final:.3f} is no lower than an untrained model's; try more --steps"
        )
    return dense.end / step


def time_speed_up(dense: Curve, other: Curve, *, dense_seconds: float, other_seconds: float) -> float | None:
    """The same in seconds, from seconds a step."""
    steps = step_speed_up(dense, other)
    return None if steps is None else steps * dense_seconds / other_seconds


def loss_at_equal_time(dense: Curve, other: Curve, *, dense_seconds: float, other_seconds: float) -> float | None:
    """Loss of `other` after as many seconds as the whole dense run took; None where its run is shorter than that."""
    return other.at(dense.end * dense_seconds / other_seconds)


def compare(
    dense: Mapping[int, Curve], other: Mapping[int, Curve], *, dense_seconds: float, other_seconds: float
) -> Result:
    """All seeds of one model against the dense twin's. Speed-ups are means over the seeds that get there.

    Raises DataError when a run of `other` is shorter in steps than its dense twin.
    """
    assert dense.keys() == other.keys(), "runs of the same seeds"
    seconds = {"dense_seconds": dense_seconds, "other_seconds": other_seconds}
    final, equal_time, steps, times = [], [], [], []
    for seed, base in dense.items():
        curve = other[seed]
        at_end = curve.at(base.end)
        if at_end is None:
            raise DataError(f"a run of seed {seed} ends at step {curve.end}, before its dense twin at {base.end}")
        final.append(at_end)
        equal_time.append(loss_at_equal_time(base, curve, **seconds))
        steps.append(step_speed_up(base, curve))
        times.append(time_speed_up(base, curve, **seconds))
    return Result(
        final=spread(final),
        equal_time=_spread_of_all(equal_time),
        step_speed_up=_spread_of_known(steps),
        time_speed_up=_spread_of_known(times),
        reached=sum(step is not None for step in steps),
        seeds=len(dense),
    )


def _spread_of_all(values: list[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    return spread(known) if len(known) == len(values) else None


def _spread_of_known(values: list[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    return spread(known) if known else None
