from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from model.t5 import position
from model.t5.position import MASKED, RelativeBias, causal_mask, padding_mask, relative_buckets


def naive_bucket(offset: int, buckets: int, max_distance: int, bidirectional: bool) -> int:
    """Section 2.1 of the T5 paper in words: exact buckets for near keys, logarithmic ones for far keys."""
    first = 0
    if bidirectional:
        buckets //= 2
        first = buckets if offset > 0 else 0
        distance = abs(offset)
    else:
        distance = max(-offset, 0)
    exact = buckets // 2
    if distance < exact:
        return first + distance
    step = math.log(distance / exact) / math.log(max_distance / exact) * (buckets - exact)
    return first + min(exact + int(step + 1e-6), buckets - 1)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (8, 16), (7, 20)])
def test_buckets_equal_naive_loop(buckets: int, max_distance: int, bidirectional: bool) -> None:
    offsets = torch.arange(-300, 301)
    got = relative_buckets(offsets, buckets=buckets, max_distance=max_distance, bidirectional=bidirectional)
    expected = [naive_bucket(o, buckets, max_distance, bidirectional) for o in offsets.tolist()]
    assert got.tolist() == expected
    unused = {buckets // 2, *([buckets - 1] if buckets % 2 else [])} if bidirectional else set()
    assert set(got.tolist()) == set(range(buckets)) - unused


def test_bias_is_the_table_entry_of_the_offset() -> None:
    bias = RelativeBias(buckets=8, max_distance=16, heads=4, tp_size=2, d_model=16, bidirectional=True)
    torch.nn.init.normal_(bias.weight)
    out_1HQM = bias(5, 7)
    assert out_1HQM.shape == (1, 2, 5, 7)
    for head in range(2):
        for q in range(5):
            for k in range(7):
                assert out_1HQM[0, head, q, k] == bias.weight[naive_bucket(k - q, 8, 16, True), head]
    assert torch.equal(bias(2, 7, first_query=3), out_1HQM[:, :, 3:5])


def test_masks() -> None:
    mask = padding_mask(torch.tensor([[True, True, False]]), torch.bfloat16)
    assert mask.shape == (1, 1, 1, 3)
    assert mask.flatten().tolist()[:2] == [0, 0]
    assert mask.flatten()[2] < 0.9 * MASKED
    causal = causal_mask(3, torch.float32, torch.device("cpu"))[0, 0]
    assert (causal == 0).tolist() == [[True, False, False], [True, True, False], [True, True, True]]


def test_buckets_are_computed_on_the_cpu_whatever_the_device(monkeypatch) -> None:
    """A border that another device's logarithm rounds the other way would make another model of it."""
    seen = []

    def watched(offset_QM: torch.Tensor, **settings) -> torch.Tensor:
        seen.append(offset_QM.device.type)
        return relative_buckets(offset_QM, **settings)

    monkeypatch.setattr(position, "relative_buckets", watched)
    with torch.device("meta"):
        bias = RelativeBias(buckets=12, max_distance=40, heads=2, tp_size=1, d_model=8, bidirectional=True)
        assert bias(5, 7).device.type == "meta"
    assert seen == ["cpu"]


def t5_bucket(offset: int, buckets: int, max_distance: int, bidirectional: bool) -> int:
    """Mesh TensorFlow's formula, whose logarithm is one of single precision."""
    first, distance = 0, -offset
    if bidirectional:
        buckets //= 2
        first, distance = (buckets if distance < 0 else 0), abs(distance)
    distance = max(distance, 0)
    exact = buckets // 2
    if distance < exact:
        return first + distance
    ratio = np.log(np.float32(distance) / np.float32(exact)) / np.float32(math.log(max_distance / exact))
    return first + min(exact + int(ratio * np.float32(buckets - exact)), buckets - 1)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("buckets", [8, 16, 32, 64, 128])
@pytest.mark.parametrize("max_distance", [65, 128, 200, 256, 1000])
def test_buckets_are_those_of_t5s_formula(buckets: int, max_distance: int, bidirectional: bool) -> None:
    offsets = torch.arange(-1200, 1201)
    got = relative_buckets(offsets, buckets=buckets, max_distance=max_distance, bidirectional=bidirectional)
    expected = [t5_bucket(o, buckets, max_distance, bidirectional) for o in offsets.tolist()]
    differing = [o for o, a, b in zip(offsets.tolist(), got.tolist(), expected, strict=True) if a != b]
    # a border that is a whole number before it is rounded down may go either way with the last bit of a logarithm
    assert differing == [] or all(_at_a_border(o, buckets, max_distance, bidirectional) for o in differing)
    assert len(differing) <= 2


def _at_a_border(offset: int, buckets: int, max_distance: int, bidirectional: bool) -> bool:
    half = buckets // 2 if bidirectional else buckets
    exact = half // 2
    step = math.log(abs(offset) / exact) / math.log(max_distance / exact) * (half - exact)
    return abs(step - round(step)) < 1e-5
