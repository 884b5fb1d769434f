"""What is read off a validation curve: straight lines, first touches, nothing beyond the ends."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.errors import DataError
from measure.studies.curve import Curve, curve_of, spread
from trainer.report.sinks.jsonl import read_rows

CURVE = Curve(steps=(0, 10, 20, 40), losses=(6.0, 5.0, 5.5, 4.5))


def test_a_value_between_two_evaluations_lies_on_their_line():
    assert [CURVE.at(step) for step in (0, 5, 10, 15, 30, 40)] == [6.0, 5.5, 5.0, 5.25, 5.0, 4.5]
    assert CURVE.end == 40
    assert CURVE.final == 4.5


def test_nothing_is_extrapolated():
    assert CURVE.at(40.5) is None
    assert Curve(steps=(10, 20), losses=(2.0, 1.0)).at(5) is None


def test_the_first_touch_counts_even_if_the_loss_rises_again():
    assert CURVE.first_at(5.2) == pytest.approx(8.0)
    assert CURVE.first_at(5.0) == 10.0
    assert CURVE.first_at(4.75) == pytest.approx(35.0)
    assert CURVE.first_at(6.0) == 0.0
    assert CURVE.first_at(7.0) == 0.0
    assert CURVE.first_at(4.5) == 40.0
    assert CURVE.first_at(4.4999) is None


@given(st.lists(st.floats(0.5, 9), min_size=2, max_size=12), st.floats(0, 1))
def test_the_curve_is_at_the_target_where_it_first_is(losses, share):
    curve = Curve(steps=tuple(range(0, 5 * len(losses), 5)), losses=tuple(losses))
    target = min(losses) + share * (max(losses) - min(losses))
    step = curve.first_at(target)
    assert step is not None
    value = curve.at(min(step, curve.end))
    assert value <= target + 1e-9
    if step > 0:
        assert value == pytest.approx(target)
    fine = (i / 50 for i in range(int(max(step - 1e-6, 0) * 50)))
    assert all(curve.at(earlier) >= target - 1e-9 for earlier in fine)


def test_a_curve_is_one_metric_of_the_log(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": 0, "eval/loss": 6.0}, {"step": 5, "train/loss": 5.5}, {"step": 10, "eval/loss": 5.0}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert curve_of(read_rows(path), "eval/loss", origin=path) == Curve(steps=(0, 10), losses=(6.0, 5.0))


def test_a_run_evaluated_again_after_a_resume_counts_with_its_newest_value(tmp_path):
    rows = [{"step": 0, "eval/loss": 6.0}, {"step": 0, "eval/loss": 5.5}]
    assert curve_of(rows, "eval/loss", origin=tmp_path).losses == (5.5,)


def test_what_cannot_be_read_is_said(tmp_path):
    with pytest.raises(DataError, match="has no eval/loss"):
        curve_of([{"step": 1, "train/loss": 2.0}], "eval/loss", origin=tmp_path)
    for bad in (None, math.nan):
        with pytest.raises(DataError, match="step 3 is not finite"):
            curve_of([{"step": 3, "eval/loss": bad}], "eval/loss", origin=tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(tmp_path / "none.jsonl")


def test_spread_over_seeds():
    three = spread([1.0, 2.0, 3.0])
    assert (three.mean, three.deviation, three.low, three.high) == (2.0, 1.0, 1.0, 3.0)
    assert three.text(1) == "2.0 +- 1.0"
    assert spread([1.5]).deviation is None
    assert spread([1.5]).text() == "1.500"
