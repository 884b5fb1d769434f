"""Lengths against the T5 paper, against T5's own formula over a grid, and by counting."""

from dataclasses import replace

import pytest

from conf.compose import compose
from conf.tasks.span_corruption import check_spans, corrupted_lengths, span_counts, span_lengths, spans_needed


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


def t5_lengths(inputs: int, density: float, mean: float) -> tuple[int, int] | None:
    """(tokens of text, targets) for `inputs`, by T5's rule; None where it counts no noise or no span."""

    def sides(tokens):
        noise = round(tokens * density)
        spans = round(noise / mean)
        return tokens - noise + spans + 1, noise + spans + 1, noise, spans

    tokens = inputs - 1
    while sides(tokens + 1)[0] <= inputs:
        tokens += 1
    reached, targets, noise, spans = sides(tokens)
    if min(noise, spans, *sides(tokens + 1)[2:]) < 1:
        return None
    if density == 0.5 and targets > reached:
        return tokens - 1, targets - 1
    return tokens, targets


@pytest.mark.parametrize("density", [0.05, 0.1, 0.15, 0.25, 0.3, 0.4, 0.5, 0.6, 0.75])
@pytest.mark.parametrize("mean", [1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 32.0, 64.0])
def test_lengths_are_those_of_t5s_formula(density, mean):
    base = replace(compose([]).data, noise_density=density, mean_span_length=mean)
    compared = 0
    for length in (16, 23, 24, 31, 32, 33, 47, 64, 77, 100, 128, 255, 256, 512, 513, 1000):
        data = replace(base, encoder_length=length)
        expected = t5_lengths(length, density, mean)
        if expected is None or list(check_spans(data)):
            continue
        got = span_lengths(data)
        assert (got.raw, got.targets) == expected, (length, density, mean)
        assert got.inputs <= length
        compared += 1
    assert compared or density / (1 - density) > mean or mean >= 8


def test_long_targets_at_half_are_a_token_shorter():
    """T5's helper cuts a token so that the targets are as long as the inputs, a round number."""
    data = replace(compose([]).data, noise_density=0.5, mean_span_length=8.0, encoder_length=25)
    assert corrupted_lengths(43, 0.5, 8.0) == (43, 25, 26)
    assert corrupted_lengths(44, 0.5, 8.0).inputs == 26
    assert span_lengths(data) == (42, 25, 25)
    assert span_lengths(replace(data, noise_density=0.51)) == (43, 25, 26)


@pytest.mark.parametrize("density", [0.01, 0.15, 0.3, 0.5, 0.85])
@pytest.mark.parametrize("mean", [1.0, 3.0, 7.5, 40.0])
def test_counts_are_those_of_t5s_mask(density, mean):
    for length in range(2, 700):
        noise = min(max(round(length * density), 1), length - 1)
        spans = max(round(noise / mean), 1)
        got = span_counts(length, density, mean)
        assert got.noise == noise
        assert got.spans == (spans if spans <= length - noise else length - noise)  # T5's fails there


def test_a_window_needs_a_sentinel_for_each_span():
    assert spans_needed(compose(["model=t5_base"]).data) == 28
