"""Span corruption against T5's definition: properties over random windows and settings."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.tasks.span_corruption import corrupted_lengths, span_counts
from data.batch import EOS_ID, PAD_ID
from data.tasks.span_corruption import SpanSettings, corrupt, noise_mask
from data.text.vocabulary import appended

VOCAB = 1_000
SENTINEL_0 = VOCAB - 1


def setting(density: float = 0.15, mean: float = 3.0, length: int = 700, seed: int = 0) -> SpanSettings:
    return SpanSettings(density, mean, length, length, appended(VOCAB - 400, 400).sentinels, seed)


def unpadded(row: np.ndarray) -> list[int]:
    ids = row.tolist()
    end = ids.index(EOS_ID)
    assert set(ids[end + 1 :]) <= {PAD_ID}, "only padding follows EOS"
    return ids[:end]


def spans_after_sentinels(ids: list[int]) -> dict[int, list[int]]:
    """{sentinel number: tokens that follow it}, number -1 for what stands before the first; asserts their order."""
    spans, number = {-1: []}, -1
    for token in ids:
        if token > SENTINEL_0 - 200:
            assert SENTINEL_0 - token == number + 1, "sentinels count up from <extra_id_0>"
            number += 1
            spans[number] = []
        else:
            spans[number].append(token)
    return spans


def check_window(window: np.ndarray, inputs: list[int], targets: list[int], density: float, mean: float) -> None:
    kept, noise = spans_after_sentinels(inputs), spans_after_sentinels(targets)
    count = len(kept) - 1
    assert noise[-1] == [], "targets begin with a sentinel"
    assert len(noise) - 1 == count, "one sentinel a span on both sides"
    rebuilt = list(kept[-1])
    for number in range(count):
        assert noise[number], "a noise span is not empty"
        rebuilt += noise[number] + kept[number]
    assert rebuilt == window.tolist(), "every token once, in order"
    assert kept[-1], "begins with a non-noise span"
    assert kept[count - 1] == [], "ends with a noise span"
    noise_tokens = sum(len(span) for span in noise.values())
    assert noise_tokens == min(max(round(len(window) * density), 1), len(window) - 1)
    assert count == min(max(round(noise_tokens / mean), 1), noise_tokens, len(window) - noise_tokens)


@settings(max_examples=80, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 300), min_size=1, max_size=5),
    density=st.floats(0.05, 0.6),
    mean=st.floats(1.5, 10.0),
    seed=st.integers(-(2**40), 2**40),
    epoch=st.integers(-(2**40), 2**40),
)
def test_every_token_appears_once_and_sentinels_are_in_order(lengths, density, mean, seed, epoch) -> None:
    windows = [np.arange(3, 3 + length) for length in lengths]
    keys = np.array([[epoch, number] for number in range(len(windows))])
    result = corrupt(windows, keys, setting(density, mean, seed=seed))
    for window, inputs, targets in zip(windows, result.inputs_BL, result.targets_BT, strict=True):
        check_window(window, unpadded(inputs), unpadded(targets), density, mean)


@pytest.mark.parametrize(("raw", "inputs", "targets"), [(568, 512, 114), (142, 128, 29), (2, 3, 3)])
def test_lengths_are_the_ones_the_configuration_derives(raw: int, inputs: int, targets: int) -> None:
    got = corrupt([np.arange(10, 10 + raw)], np.zeros((1, 2), dtype=np.int64), setting())
    lengths = corrupted_lengths(raw, 0.15, 3.0)
    assert (np.count_nonzero(got.inputs_BL), np.count_nonzero(got.targets_BT)) == (lengths.inputs, lengths.targets)
    if raw != 142:
        assert (lengths.inputs, lengths.targets) == (inputs, targets)


def test_shorter_windows_never_need_more_room() -> None:
    lengths = [corrupted_lengths(raw, 0.15, 3.0) for raw in range(2, 600)]
    assert all(a.inputs <= b.inputs and a.targets <= b.targets for a, b in itertools.pairwise(lengths))


def test_one_token_stays_in_the_inputs_and_none_is_padding() -> None:
    got = corrupt([np.array([7]), np.array([], dtype=np.int64)], np.zeros((2, 2), dtype=np.int64), setting(length=4))
    assert got.inputs_BL.tolist() == [[7, EOS_ID, 0, 0], [0, 0, 0, 0]]
    assert got.targets_BT.tolist() == [[SENTINEL_0, EOS_ID, 0, 0], [0, 0, 0, 0]]


def test_a_window_does_not_depend_on_its_neighbours() -> None:
    windows = [np.arange(3, 3 + length) for length in (50, 20, 50, 33)]
    keys = np.array([[0, 5], [0, 6], [1, 5], [2, 9]])
    together = corrupt(windows, keys, setting())
    for row in range(4):
        alone = corrupt([windows[row]], keys[row : row + 1], setting())
        assert np.array_equal(together.inputs_BL[row], alone.inputs_BL[0])
        assert np.array_equal(together.targets_BT[row], alone.targets_BT[0])


def test_key_parts_and_seed_all_matter() -> None:
    def masks(seed: int, keys: list[list[int]]) -> set[bytes]:
        return {row.tobytes() for row in noise_mask(300, np.array(keys), setting(seed=seed))}

    assert len(masks(0, [[0, 0], [0, 1], [1, 0], [-1, 0]]) | masks(1, [[0, 0]])) == 5


def test_global_random_state_is_neither_read_nor_changed() -> None:
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    first = noise_mask(100, np.zeros((1, 2), dtype=np.int64), setting())
    assert np.array_equal(before, np.random.get_state()[1])
    np.random.seed(4)
    assert np.array_equal(first, noise_mask(100, np.zeros((1, 2), dtype=np.int64), setting()))


def test_segmentations_are_uniform() -> None:
    """6 noise tokens in 2 spans: each of the 5 first lengths should be equally likely."""
    keys = np.stack([np.zeros(5_000, dtype=np.int64), np.arange(5_000)], axis=1)
    mask = noise_mask(40, keys, setting())
    assert span_counts(40, 0.15, 3.0) == (6, 2)
    firsts = Counter()
    for row in mask:
        start = int(np.argmax(row))
        firsts[int(np.argmin(row[start:]))] += 1
    assert sorted(firsts) == [1, 2, 3, 4, 5]
    assert all(850 < count < 1_150 for count in firsts.values()), firsts


def t5_sides(tokens: list[int], noise: list[bool], sentinels: list[int]) -> tuple[list[int], list[int]]:
    """Inputs and targets by T5's rule, token by token: the first of a run becomes its sentinel, the others go."""

    def marked(masked: list[bool]) -> list[int]:
        result, runs = [], 0
        for place, token in enumerate(tokens):
            if not masked[place]:
                result.append(token)
            elif place == 0 or not masked[place - 1]:
                result.append(sentinels[runs])
                runs += 1
        return [*result, EOS_ID]

    return marked(noise), marked([not each for each in noise])


@pytest.mark.parametrize("density", [0.15, 0.5, 0.8])
@pytest.mark.parametrize("mean", [1.0, 3.0, 20.0])
def test_pairs_are_t5s_for_the_mask_that_was_drawn(density: float, mean: float) -> None:
    scattered = [11 * (k % 7) + k for k in range(400)]  # a tokenizer may have its sentinels anywhere
    given_settings = setting(density, mean)._replace(sentinels=scattered)
    for length in (2, 3, 7, 10, 30, 64, 101, 256):
        tokens, keys = np.arange(5_000, 5_000 + length), np.array([[0, length]])
        (mask,) = noise_mask(length, keys, given_settings)
        counts = span_counts(length, density, mean)
        assert (int(mask.sum()), int(np.diff(mask.astype(int), prepend=0).clip(0).sum())) == counts
        assert (bool(mask[0]), bool(mask[-1])) == (False, True)
        pair = corrupt([tokens], keys, given_settings)
        inputs, targets = t5_sides(tokens.tolist(), mask.tolist(), scattered)
        assert unpadded(pair.inputs_BL[0]) == inputs[:-1]
        assert unpadded(pair.targets_BT[0]) == targets[:-1]
