"""Lengths against the T5 paper and by counting."""

import pytest

from conf.compose import compose
from conf.tasks.span_corruption import corrupted_lengths, span_lengths


def test_t5_lengths():
    data = compose(["model=t5_base"]).data
    assert span_lengths(data) == (568, 512, 114)  # T5, section 3.1.4
    assert corrupted_lengths(569, 0.15, 3.0).inputs > 512


@pytest.mark.parametrize("length", [16, 64, 128, 500])
def test_the_window_is_the_longest_that_fits(length):
    data = compose([f"data.encoder_length={length}", "moe.group_sequences=1"]).data
    raw, inputs, targets = span_lengths(data)
    noise = round(raw * 0.15)
    spans = round(noise / 3)
    assert inputs == raw - noise + spans + 1 <= length
    assert targets == noise + spans + 1
    assert corrupted_lengths(raw + 1, 0.15, 3.0).inputs > length
