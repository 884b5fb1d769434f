"""What every check of recorded runs shares: one comparison, how errors are measured, and the registry of folder kinds.

A runner yields `(case, comparisons)` for each case and table of its folder; what goes wrong in one case is raised while
its comparisons are drawn, so that the others can still be. Limit 0 means exact. A recording with a setting that the
runner does not know raises `Unsupported`, and an array or scalar that it does not know is a comparison that does not
hold (`unknown`): neither is ever passed over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.golden.reader import distance, read_manifest, read_table

Case = tuple[str, Iterator["Comparison"]]
Runner = Callable[[Path], Iterator[Case]]
RowRule = Callable[[dict[str, Any]], dict[str, Any]]  # what a table row gives -> what it must say
RUNNERS: dict[str, Runner] = {}  # kind of folder (the manifest's "folder") -> its runner; filled by `runner`


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """One recorded array, scalar or table against ours."""

    array: str
    error: float  # max|ours - recorded| / max|recorded|; of integers the number of entries that differ
    limit: float  # 0: exact
    unknown: str = ""  # what about it is not known to the check; it then does not hold

    @property
    def holds(self) -> bool:
        """Whether the error is within the limit (an error that is not a number is not)."""
        return not self.unknown and self.error <= self.limit


class Unsupported(ValueError):
    """A recording asks for something this project does not compute."""


def runner(kind: str) -> Callable[[Runner], Runner]:
    """Register the runner of a kind of folder."""

    def register(function: Runner) -> Runner:
        assert kind not in RUNNERS, f"two runners for {kind}"
        RUNNERS[kind] = function
        return function

    return register


def unknown(what: str, name: str) -> Comparison:
    """A recorded array or scalar that the check has nothing to compare with."""
    return Comparison(array=name, error=math.nan, limit=0, unknown=f"{what} {name} is not known to this check")


def exact(array: str, ours: Any, recorded: Any) -> Comparison:
    """Integers, booleans or plain values: the number of entries that differ; infinite if shapes do."""
    if isinstance(ours, Tensor) and isinstance(recorded, Tensor):
        if ours.shape != recorded.shape:
            return Comparison(array=array, error=math.inf, limit=0)
        return Comparison(array=array, error=float((ours.long() != recorded.long()).sum()), limit=0)
    return Comparison(array=array, error=float(ours != recorded), limit=0)


def close(array: str, ours: Tensor, recorded: Tensor, limit: float, *, noise: float = 0.0) -> Comparison:
    """Floats: the largest difference relative to the largest recorded entry; infinite if shapes differ.

    `noise` is the rounding error of the recorded run's own arithmetic, where the array is a difference of larger
    numbers: what lies within it holds. An array whose true value is 0 was recorded as nothing but this noise.
    """
    if ours.shape != recorded.shape:
        return Comparison(array=array, error=math.inf, limit=limit)
    if not ours.numel():
        return Comparison(array=array, error=0.0, limit=limit)
    nan = recorded.isnan()
    if bool(nan.any()):  # a recorded nan must be met by a nan; the rest is compared
        if not torch.equal(nan, ours.isnan()):
            return Comparison(array=array, error=math.inf, limit=limit)
        ours, recorded = ours.masked_fill(nan, 0.0), recorded.masked_fill(nan, 0.0)
    return Comparison(array=array, error=distance(ours, recorded, least=noise / limit), limit=limit)


def scalar(name: str, ours: Tensor | float, recorded: float, limit: float, *, noise: float = 0.0) -> Comparison:
    """One number, relative; `noise` as in `close`."""
    value = ours.detach().double() if isinstance(ours, Tensor) else torch.tensor(float(ours), dtype=torch.float64)
    return close(name, value.reshape(()), torch.tensor(recorded, dtype=torch.float64), limit, noise=noise)


def require(case: str, field: str, value: Any, known: Collection[Any]) -> Any:
    """`value`, or `Unsupported` if it is none of `known`."""
    if value not in known:
        listed = ", ".join(repr(one) for one in known)
        raise Unsupported(f"{case}: {field} is {value!r}; this check knows {listed}")
    return value


def only_known(case: str, config: dict[str, Any], known: Collection[str]) -> None:
    """Raise `Unsupported` if a case's settings have a field that the runner would ignore."""
    extra = sorted(set(config) - set(known))
    if extra:
        raise Unsupported(f"{case}: settings {extra} are not known to this check")


def compare_tables(folder: Path, tables: dict[frozenset[str], RowRule]) -> Iterator[Case]:
    """Every integer table of a folder; the error is the number of rows that differ."""
    for entry in read_manifest(folder).get("tables", []):
        yield entry["file"], _compare_table(folder, entry["file"], tables)


def _compare_table(folder: Path, file: str, tables: dict[frozenset[str], RowRule]) -> Iterator[Comparison]:
    rows = read_table(folder, file)
    columns = set(rows[0]) if rows else set()
    match = [given for given in tables if given <= columns]
    if not match:
        raise Unsupported(f"{folder.name}/{file}: no table with columns {sorted(columns)} is known")
    given = max(match, key=len)
    wrong = 0
    for row in rows:
        wanted = {name: value for name, value in row.items() if name not in given}
        wrong += tables[given](row) != wanted
    yield Comparison(array=f"{len(rows)} rows", error=float(wrong), limit=0)
