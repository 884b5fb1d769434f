"""The covering set: every pair of settings that occurs occurs in it, it is small, and it does not depend on luck."""

from itertools import combinations
from itertools import product as cartesian

import pytest

from measure.verify.planning.covering import cover_pairs, pairs_of
from measure.verify.planning.layouts import Layout, product


def test_pairs_are_those_of_a_naive_loop():
    layout = Layout(tp=2, dp=1, ep=1, etp=2, zero=1, accumulation=4, recompute=True)
    values = {"tp": 2, "dp": 1, "ep": 1, "etp": 2, "zero": 1, "accumulation": 4, "recompute": 1}
    assert pairs_of(layout) == {(a, values[a], b, values[b]) for a, b in combinations(values, 2)}


@pytest.mark.parametrize("ranks", [1, 2, 4, 6, 8])
def test_every_pair_that_occurs_is_covered(ranks):
    candidates = list(product(ranks, experts=True))
    cover = cover_pairs(candidates, limit=1000)
    wanted = {pair for each in candidates for pair in pairs_of(each)}
    assert {pair for each in cover.layouts for pair in pairs_of(each)} == wanted
    assert cover.covered == cover.pairs == len(wanted)
    assert set(cover.layouts) <= set(candidates)


@pytest.mark.parametrize(("ranks", "share"), [(2, 1.0), (4, 1.0), (8, 0.9)])
def test_sixteen_layouts_show_nearly_all(ranks, share):
    cover = cover_pairs(list(product(ranks, experts=True)), limit=16)
    assert len(set(cover.layouts)) == len(cover.layouts) <= 16
    assert cover.covered >= share * cover.pairs
    axes = {(each.zero, each.accumulation, each.recompute) for each in cover.layouts}
    assert {zero for zero, _, _ in axes} == {0, 1, 2}
    assert set(cartesian((1, 2), (False, True))) == {(acc, again) for _, acc, again in axes}


def test_what_must_be_in_comes_first_and_invalid_ones_are_not_forced_in():
    candidates = list(product(2, experts=True))
    wanted, alien = candidates[17], Layout(tp=64, dp=1, ep=1, etp=1, zero=0, accumulation=1, recompute=False)
    assert cover_pairs(candidates, limit=4, first=[alien, wanted]).layouts[0] == wanted
    assert len(cover_pairs(candidates, limit=4).layouts) == 4


def test_the_choice_is_a_function_of_the_candidates():
    candidates = list(product(4, experts=True))
    assert cover_pairs(candidates, limit=9) == cover_pairs(candidates, limit=9)


def test_nothing_to_choose_from():
    assert cover_pairs([], limit=4).layouts == ()
