"""The timing function on a clock that a test can read: alternation, medians, ratios."""

import time

import pytest
import torch

from measure.speed.timing import MAX_REPEATS, MIN_SECONDS, Comparison, clock_of, compare, repeats_for


class FakeClock:
    """Charges every piece of work what the test says and notes who ran when."""

    def __init__(self, costs, drift=0.0):
        self.costs, self.drift, self.calls, self.ran = costs, drift, [], []

    def __call__(self, work, repeats):
        name = work()
        self.calls.append((name, repeats))
        slowdown = 1.0 + self.drift * len(self.calls)
        return self.costs[name] * repeats * slowdown


def test_sides_alternate_and_take_turns_in_going_first():
    clock = FakeClock({"a": 1.0, "b": 2.0})
    result = compare(lambda: "a", lambda: "b", clock=clock, rounds=3, warmup=1, repeats=1)
    assert [name for name, _ in clock.calls] == ["a", "b", *"ab", *"ba", *"ab"]
    assert result.ours == (1.0, 1.0, 1.0)
    assert result.peer == (2.0, 2.0, 2.0)
    assert result.ratio == 0.5


def test_a_machine_that_slows_down_leaves_the_ratio_alone():
    clock = FakeClock({"a": 3.0, "b": 1.0}, drift=0.05)
    result = compare(lambda: "a", lambda: "b", clock=clock, rounds=10, warmup=1, repeats=1)
    assert result.ours[-1] > 1.5 * result.ours[0], "the drift is there"
    assert result.ratio == pytest.approx(3.0, rel=0.02)


def test_median_and_quartiles_forgive_one_outlier():
    result = Comparison(ours=(1.0, 1.1, 50.0, 0.9, 1.0), peer=(1.0,) * 5)
    assert result.ours_seconds == 1.0
    assert result.ratio == 1.0
    assert result.spread == (1.0, 1.1)
    assert Comparison(ours=(2.0,), peer=(1.0,)).spread == (2.0, 2.0)


def test_short_work_is_repeated_until_the_clock_can_see_it():
    clock = FakeClock({"a": MIN_SECONDS / 5, "b": 2.0})
    result = compare(lambda: "a", lambda: "b", clock=clock, rounds=1)
    assert clock.calls[-2:] == [("a", 5), ("b", 1)]
    assert result.ours_seconds == pytest.approx(MIN_SECONDS / 5), "of one run, not of five"
    assert repeats_for(0.0) == MAX_REPEATS
    assert repeats_for(1.0) == 1


def test_the_host_clock_tells_seconds():
    seconds = clock_of(torch.device("cpu"))(lambda: time.sleep(0.01), 3)
    assert 0.03 <= seconds < 1.0
