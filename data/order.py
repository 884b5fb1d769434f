"""A shuffled order of n items without storing it: a keyed bijection of [0, n), so that resume is a number.

A Feistel network permutes the smallest even-bit power of two that holds n; values that land outside are fed through
again (cycle walking) until they are inside. Everything is vectorised over positions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

_ROUNDS = 6
_GOLDEN = 0x9E3779B97F4A7C15
_MASK64 = (1 << 64) - 1


class Places(NamedTuple):
    """Where positions of an endless sequence of shuffled passes fall."""

    epochs: NDArray[np.int64]
    indices: NDArray[np.int64]  # items, in [0, n)


def mix(value: int) -> int:
    """One splitmix64 step (Steele et al. 2014) of a 64-bit integer."""
    value = (value + _GOLDEN) & _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


def fold_key(*parts: int) -> int:
    """One 64-bit key of several integers (negative ones too); order matters."""
    key = 0
    for part in parts:
        key = mix(key ^ mix(part & _MASK64))
    return key


def permute(indices: ArrayLike, n: int, key: int) -> NDArray[np.int64]:
    """Images of `indices` (each in [0, n)) under the bijection of [0, n) chosen by `key`."""
    values = np.asarray(indices, dtype=np.int64)
    assert n > 0, n
    assert values.size == 0 or (values.min() >= 0 and values.max() < n), (values, n)
    half_bits = max(1, ((n - 1).bit_length() + 1) // 2)
    keys = [fold_key(key, round_) for round_ in range(_ROUNDS)]
    result = _feistel(values.astype(np.uint64), half_bits, keys)
    outside = np.flatnonzero(result >= n)
    while outside.size:  # at most 4n values are walked in expectation: the power of two is below 4n
        walked = _feistel(result.flat[outside], half_bits, keys)
        result.flat[outside] = walked
        outside = outside[walked >= n]
    return result.astype(np.int64)


def places(positions: ArrayLike, n: int, seed: int) -> Places:
    """Epoch and item of each position of an endless sequence in which every pass over n items has its own order."""
    values = np.asarray(positions, dtype=np.int64)
    epochs = values // n
    indices = np.empty_like(values)
    for epoch in np.unique(epochs):
        inside = epochs == epoch
        indices[inside] = permute(values[inside] - epoch * n, n, fold_key(seed, int(epoch)))
    return Places(epochs, indices)


def _feistel(values: NDArray[np.uint64], half_bits: int, keys: list[int]) -> NDArray[np.uint64]:
    bits, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> bits, values & mask
    for key in keys:
        left, right = right, left ^ (_mix_array(right + np.uint64(key)) & mask)
    return (left << bits) | right


def _mix_array(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finaliser; array arithmetic wraps without warnings."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
