"""Learning-rate schedules: warm-up, shape, floor and the ends."""

from __future__ import annotations

import itertools
import math

import pytest

from conf.compose import compose
from conf.schema import ScheduleConfig
from trainer.schedule import learning_rate

NAMES = ("rsqrt", "cosine", "wsd", "linear", "constant")
DECAYING = ("cosine", "wsd", "linear")


def schedule(name, **changes):
    fields = {"lr": 0.5, "warmup_steps": 10, "warmup_shape": "linear", "min_lr_ratio": 0.1, "decay_fraction": 0.2}
    return ScheduleConfig(name=name, **{**fields, **changes})


@pytest.mark.parametrize("name", NAMES)
def test_warm_up_is_a_line_that_starts_above_zero_and_reaches_the_peak(name):
    rates = [learning_rate(schedule(name), step, 100) for step in range(1, 11)]
    assert rates == pytest.approx([0.05 * step for step in range(1, 11)])


@pytest.mark.parametrize("name", NAMES)
def test_after_warm_up_the_rate_never_rises(name):
    rates = [learning_rate(schedule(name), step, 100) for step in range(10, 120)]
    assert all(a >= b for a, b in itertools.pairwise(rates))


@pytest.mark.parametrize("name", DECAYING)
def test_decaying_schedules_end_at_the_floor_and_stay_there(name):
    assert learning_rate(schedule(name), 99, 100) > 0.05
    assert learning_rate(schedule(name), 100, 100) == pytest.approx(0.05)
    assert learning_rate(schedule(name), 150, 100) == pytest.approx(0.05)


@pytest.mark.parametrize("name", NAMES)
def test_without_warm_up_the_first_step_has_the_peak_or_just_below(name):
    assert 0.49 < learning_rate(schedule(name, warmup_steps=0), 1, 100) <= 0.5


@pytest.mark.parametrize(
    ("name", "step", "rate"),
    [
        ("rsqrt", 40, 0.5 * math.sqrt(10 / 40)),
        ("rsqrt", 1000, 0.5 * math.sqrt(10 / 1000)),
        ("constant", 70, 0.5),
        ("linear", 55, 0.5 * (0.1 + 0.9 * 0.5)),
        ("cosine", 55, 0.5 * (0.1 + 0.9 * 0.5)),
        ("cosine", 40, 0.5 * (0.1 + 0.9 * 0.75)),
        ("wsd", 80, 0.5),
        ("wsd", 90, 0.5 * (0.1 + 0.9 * 0.5)),
    ],
)
def test_values_worked_out_by_hand(name, step, rate):
    assert learning_rate(schedule(name), step, 100) == pytest.approx(rate)


def test_a_run_that_ends_with_its_warm_up_does_not_divide_by_zero():
    assert learning_rate(schedule("cosine"), 10, 10) == 0.5


@pytest.mark.parametrize("warmup", [1, 10, 1_000, 10_000])
def test_t5s_published_rate(warmup):
    """1 / sqrt(max(step, warmup)): flat, then falling (arXiv 1910.10683, section 3.1.2)."""
    cfg = schedule("rsqrt", lr=1 / math.sqrt(warmup), warmup_steps=warmup, warmup_shape="flat")
    for step in (1, 2, 9, 10, 11, 500, 1_000, 1_001, 9_999, 10_000, 10_001, 524_288):
        assert learning_rate(cfg, step, 600_000) == pytest.approx(1 / math.sqrt(max(step, warmup)), rel=1e-12)


def test_the_preset_of_t5_is_that_rate_whatever_the_length_of_the_run():
    for steps in (100, 50_000):
        cfg = compose(["model=t5_small", "schedule=t5", f"train.steps={steps}"])
        rates = [learning_rate(cfg.schedule, step, steps) for step in (1, 100, 10_000, 40_000)]
        assert rates == pytest.approx([0.01, 0.01, 0.01, 0.005])


@pytest.mark.parametrize("name", NAMES)
def test_a_flat_warm_up_is_at_the_peak(name):
    flat, line = schedule(name, warmup_shape="flat"), schedule(name)
    assert [learning_rate(flat, step, 100) for step in range(1, 11)] == [0.5] * 10
    assert [learning_rate(flat, step, 100) for step in range(10, 101)] == [
        learning_rate(line, step, 100) for step in range(10, 101)
    ]
