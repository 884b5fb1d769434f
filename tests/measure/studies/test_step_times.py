"""Step times are compared round by round, and a kept measurement is used only for the runs it was made of."""

import pytest

from measure.studies.step_times import TIMES, StepTimes, load_times, measured, save_times

# The machine was busy in the last two rounds; in every round b took twice as long as a.
BUSY = StepTimes(seconds={"a": [1.0, 1.0, 5.0, 6.0], "b": [2.0, 2.0, 10.0, 12.0]}, where="here")


def test_a_ratio_is_the_median_over_rounds():
    assert BUSY.ratio("b", "a") == 2.0
    assert BUSY.ratio("a", "a") == 1.0
    assert BUSY.median("a") == 3.0


def test_kept_times_come_back_for_the_same_runs_alone(tmp_path):
    path = tmp_path / TIMES
    assert load_times(path, ["a", "b"]) is None
    save_times(path, BUSY)
    assert load_times(path, ["b", "a"]) == BUSY
    assert load_times(path, ["a", "b", "c"]) is None


def test_kept_times_are_not_measured_again(tmp_path):
    save_times(tmp_path / TIMES, BUSY)
    said = []
    assert measured(tmp_path, ["a", "b"], rounds=4, say=said.append) == BUSY  # there are no runs to measure
    assert "delete it to measure again" in said[0]


@pytest.mark.parametrize(("names", "rounds"), [(["a", "c"], 4), (["a", "b"], 5)])
def test_times_of_other_runs_or_rounds_are_measured(names, rounds, tmp_path):
    save_times(tmp_path / TIMES, BUSY)
    with pytest.raises(ValueError, match="needs a run folder"):  # so that it tries to open them
        measured(tmp_path, names, rounds=rounds, say=lambda text: None)
