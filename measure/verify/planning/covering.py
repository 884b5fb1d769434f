"""A few of many layouts in which every pair of settings that can occur together does: pairwise covering, greedily."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

from measure.verify.planning.layouts import FACTORS, Layout

Pair = tuple[str, int, str, int]  # factor, its value, another factor, its value


class Cover(NamedTuple):
    """What was chosen."""

    layouts: tuple[Layout, ...]
    pairs: int  # that occur in any candidate
    covered: int  # that occur in a chosen one


def pairs_of(layout: Layout) -> frozenset[Pair]:
    """Every pair of settings of a layout."""
    return frozenset(
        (a, int(getattr(layout, a)), b, int(getattr(layout, b)))
        for a, b in combinations(FACTORS, 2)
    )  # fmt: skip


def cover_pairs(candidates: Sequence[Layout], *, limit: int, first: Sequence[Layout] = ()) -> Cover:
    """At most `limit` of `candidates`, `first` among them, that together show as many pairs as the greedy choice finds.

    Each choice takes the candidate with the most pairs not seen yet; among equals the one on the most ranks, then the
    first. The result is a function of the arguments alone.
    """
    shown = {layout: pairs_of(layout) for layout in candidates}
    wanted: set[Pair] = set().union(*shown.values())
    missing = set(wanted)
    chosen: list[Layout] = []
    for layout in [each for each in first if each in shown][:limit]:
        chosen.append(layout)
        missing -= shown[layout]
    while missing and len(chosen) < limit:
        best = max(shown, key=lambda layout: (len(shown[layout] & missing), layout.world))
        chosen.append(best)
        missing -= shown[best]
    return Cover(tuple(chosen), len(wanted), len(wanted) - len(missing))
