"""Decisions that every rank must take alike, on the control group: never inside the step's data path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from conf.errors import RankDisagreement, SetupError
from parallel.mesh.axes import Mesh
from parallel.mesh.collectives import broadcast_object, gather_objects


def any_rank(flag: bool, mesh: Mesh) -> bool:
    """Whether `flag` is set on at least one rank; the same answer on all."""
    return any(gather_objects(bool(flag), mesh.control))


def agree(name: str, value: Any, mesh: Mesh) -> None:
    """Raise RankDisagreement on every rank unless all hold an equal `value` (plain JSON types).

    The text names the quantity, the differing values and the ranks that hold them.
    """
    values = gather_objects(value, mesh.control)
    holders: dict[str, list[int]] = {}
    for rank, held in zip(mesh.control.ranks, values, strict=True):
        holders.setdefault(repr(held), []).append(rank)
    if len(holders) > 1:
        told = "; ".join(f"{held} on {ranks_named(ranks)}" for held, ranks in holders.items())
        raise RankDisagreement(f"{name}: ranks disagree: {told}")


def on_main(act: Callable[[], None], mesh: Mesh) -> None:
    """Run `act` on rank 0 alone; an OSError there becomes a SetupError on every rank, so that none waits for rank 0."""
    error = None
    if mesh.is_main:
        try:
            act()
        except OSError as caught:
            error = f"{caught.filename or 'a file of the run'} cannot be written: {caught.strerror or caught}"
    error = broadcast_object(error, mesh.control)
    if error is not None:
        raise SetupError(f"{error}; needs a writable folder with room on the disk; try runs_dir=FOLDER")


def ranks_named(ranks: Sequence[int]) -> str:
    """`rank 3`, `ranks 0, 2`, of many the first eight."""
    shown = ", ".join(str(rank) for rank in ranks[:8]) + (", .." if len(ranks) > 8 else "")
    return f"rank {shown}" if len(ranks) == 1 else f"ranks {shown}"
