"""Flips, slots and gates of the same tokens under two precisions, on decisions made by hand."""

from types import SimpleNamespace

import pytest
import torch

from measure.studies.precision.routing import LayerChoices, Watch, compare


def choices(choice, gate, gap, kept):
    return LayerChoices(
        choice_N=torch.tensor(choice),
        gate_N=torch.tensor(gate),
        gap_N=torch.tensor(gap),
        kept_N=torch.tensor(kept, dtype=torch.bool),
    )


FIRST = choices([0, 1, 2, 3], [0.9, 0.8, 0.5, 0.4], [3.0, 2.0, 0.1, 0.3], [1, 1, 1, 0])


def test_equal_decisions_differ_in_nothing():
    change = compare(FIRST, FIRST)
    assert (change.flipped, change.kept_changed, change.gate_error, change.gap_flipped) == (0.0, 0.0, 0.0, None)
    assert change.tokens == 4


def test_each_difference_is_counted_where_it_belongs():
    # The third token flips, which also wins the fourth its slot; only tokens that stay have a gate to compare.
    second = choices([0, 1, 3, 3], [0.8, 0.9, 0.1, 0.4], [9.0, 9.0, 9.0, 9.0], [1, 1, 1, 1])
    change = compare(FIRST, second)
    assert change.flipped == 0.25
    assert change.kept_changed == 0.25
    assert change.gate_error == pytest.approx((0.1 + 0.1 + 0.0) / 3)
    assert change.gap_flipped == pytest.approx(0.1)  # in the first precision, of the token that flips
    assert change.gap_all == pytest.approx(0.3)  # torch's median of an even count is the lower middle


def test_all_tokens_may_flip():
    second = choices([1, 2, 3, 0], [0.9] * 4, [1.0] * 4, [1] * 4)
    change = compare(FIRST, second)
    assert change.flipped == 1.0
    assert change.gate_error == 0.0


def test_different_tokens_are_not_compared():
    with pytest.raises(AssertionError, match="the same tokens"):
        compare(FIRST, choices([0], [0.5], [1.0], [1]))


def test_a_watch_sees_real_tokens_only_and_leaves_logits_alone():
    watch, capacity = Watch(), 2
    logits = torch.tensor([[[1.0, 3.0, 2.5], [0.0, 0.0, 9.0]], [[5.0, 4.0, 0.0], [2.0, 0.0, 1.0]]])  # G2 S2 E3
    assert watch.logits(logits) is logits
    watch.real_N = torch.tensor([True, False, True, True])
    slots = torch.tensor([[[1 * capacity], [6]], [[0], [6]]])  # 6 = E * C: padding, and one token without a slot
    gates = torch.tensor([[[0.7], [0.0]], [[0.6], [0.0]]])
    watch.decided(SimpleNamespace(slots_GSK=slots, gates_GSK=gates, capacity=capacity, logits_GSE=logits))
    assert watch.choices[0].tolist() == [1, 0, 3]
    assert watch.kept[0].tolist() == [True, True, False]
    torch.testing.assert_close(watch.gates[0], torch.tensor([0.7, 0.6, 0.0]))
    torch.testing.assert_close(watch.gaps[0], torch.tensor([0.5, 1.0, 1.0]))
