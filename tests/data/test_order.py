"""The index permutation: bijective, keyed, and without memory of where it was."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.order import fold_key, permute, places


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 3_000), key=st.integers(0, 2**64 - 1))
def test_permutation_is_a_bijection(n: int, key: int) -> None:
    assert sorted(permute(np.arange(n), n, key).tolist()) == list(range(n))


def test_one_position_at_a_time_gives_the_same() -> None:
    whole = permute(np.arange(777), 777, 5)
    assert [int(permute(np.array([p]), 777, 5)[0]) for p in range(777)] == whole.tolist()


def test_large_ranges_stay_inside_and_distinct() -> None:
    n = (1 << 40) + 12_345
    images = permute(np.arange(10_000) * 1_000_003, n, 9)
    assert images.min() >= 0
    assert images.max() < n
    assert len(np.unique(images)) == 10_000


@pytest.mark.parametrize("n", [64, 1_000, 5_000])
def test_order_looks_random(n: int) -> None:
    """Neighbours are far apart, and few items stay where they were."""
    images = permute(np.arange(n), n, 3)
    assert np.mean(np.abs(np.diff(images))) == pytest.approx(n / 3, rel=0.15)
    assert np.count_nonzero(images == np.arange(n)) <= 8


def test_each_epoch_is_a_whole_pass_in_its_own_order() -> None:
    epochs, indices = places(np.arange(300), 100, seed=1)
    assert epochs.tolist() == [0] * 100 + [1] * 100 + [2] * 100
    passes = indices.reshape(3, 100)
    assert all(sorted(one.tolist()) == list(range(100)) for one in passes)
    assert not np.array_equal(passes[0], passes[1])
    assert not np.array_equal(passes[0], places(np.arange(100), 100, seed=2).indices)


def test_key_depends_on_order_and_sign() -> None:
    assert len({fold_key(1, 2), fold_key(2, 1), fold_key(-1, 2), fold_key(1), fold_key(1, 2, 0)}) == 5
