"""Speed-ups to the dense model's final loss, on curves whose answers are known by hand."""

import pytest

from conf.errors import DataError
from measure.studies.curve import Curve
from measure.studies.headline.results import compare, loss_at_equal_time, step_speed_up, time_speed_up

DENSE = Curve(steps=(0, 100, 200), losses=(6.0, 5.0, 4.0))
FAST = Curve(steps=(0, 100, 200), losses=(6.0, 4.0, 3.0))  # at 4.0 after half the steps
SLOW = Curve(steps=(0, 100, 200), losses=(6.0, 5.5, 4.5))  # never at 4.0


def test_steps_saved():
    assert step_speed_up(DENSE, FAST) == 2.0
    assert step_speed_up(DENSE, DENSE) == 1.0
    assert step_speed_up(DENSE, SLOW) is None


def test_a_longer_run_that_gets_there_late_has_a_speed_up_below_one():
    late = Curve(steps=(0, 200, 400), losses=(6.0, 5.0, 4.0))
    assert step_speed_up(DENSE, late) == 0.5


def test_a_step_that_takes_longer_costs_its_share():
    assert time_speed_up(DENSE, FAST, dense_seconds=0.1, other_seconds=0.16) == pytest.approx(1.25)
    assert time_speed_up(DENSE, SLOW, dense_seconds=0.1, other_seconds=0.16) is None


def test_equal_time_cuts_the_slower_steps_off():
    # 200 dense steps take 20 s; in 20 s the other takes 125 of its steps: a quarter of the way from 4.0 to 3.0
    assert loss_at_equal_time(DENSE, FAST, dense_seconds=0.1, other_seconds=0.16) == pytest.approx(3.75)


def test_equal_time_of_faster_steps_lies_beyond_the_run():
    assert loss_at_equal_time(DENSE, FAST, dense_seconds=0.1, other_seconds=0.09) is None


def test_a_dense_model_that_learned_nothing_is_an_error():
    flat = Curve(steps=(0, 100), losses=(6.0, 6.0))
    with pytest.raises(DataError, match="no lower than an untrained"):
        step_speed_up(flat, FAST)


def test_seeds_are_paired_and_those_that_never_get_there_are_counted():
    result = compare({1: DENSE, 2: DENSE}, {1: FAST, 2: SLOW}, dense_seconds=1.0, other_seconds=1.6)
    assert (result.reached, result.seeds) == (1, 2)
    assert result.step_speed_up.mean == 2.0
    assert result.time_speed_up.mean == 1.25
    assert result.final.mean == 3.75
    assert result.equal_time.mean == pytest.approx((3.75 + 5.25) / 2)


def test_none_gets_there():
    result = compare({1: DENSE}, {1: SLOW}, dense_seconds=1.0, other_seconds=1.0)
    assert result.reached == 0
    assert result.step_speed_up is None
    assert result.time_speed_up is None


def test_one_seed_that_is_too_short_leaves_no_mean_at_equal_time():
    longer = Curve(steps=(0, 400), losses=(6.0, 2.0))
    result = compare({1: DENSE, 2: DENSE}, {1: FAST, 2: longer}, dense_seconds=1.5, other_seconds=1.0)
    assert result.equal_time is None
    assert result.final.mean == 3.5


def test_a_run_shorter_than_its_twin_is_an_error():
    with pytest.raises(DataError, match="seed 7 ends at step 100"):
        compare({7: DENSE}, {7: Curve(steps=(0, 100), losses=(6.0, 4.0))}, dense_seconds=1, other_seconds=1)
