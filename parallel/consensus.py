"""Decisions that every rank must take alike, on the control group: never inside the step's data path."""

from __future__ import annotations

from typing import Any

from conf.errors import RankDisagreement
from parallel.collectives import gather_objects
from parallel.types import ParallelGroups


def any_rank(flag: bool, groups: ParallelGroups) -> bool:
    """Whether `flag` is set on at least one rank; the same answer on all."""
    return any(gather_objects(bool(flag), groups.control))


def agree(name: str, value: Any, groups: ParallelGroups) -> None:
    """Raise RankDisagreement on every rank unless all hold an equal `value` (plain JSON types).

    The text names the quantity, the differing values and the ranks that hold them.
    """
    values = gather_objects(value, groups.control)
    holders: dict[str, list[int]] = {}
    for rank, held in zip(groups.control.ranks, values, strict=True):
        holders.setdefault(repr(held), []).append(rank)
    if len(holders) > 1:
        told = "; ".join(f"{held} on {_ranks(ranks)}" for held, ranks in holders.items())
        raise RankDisagreement(f"{name}: ranks disagree: {told}")


def _ranks(ranks: list[int]) -> str:
    shown = ", ".join(str(rank) for rank in ranks[:8]) + (", .." if len(ranks) > 8 else "")
    return f"rank {shown}" if len(ranks) == 1 else f"ranks {shown}"
