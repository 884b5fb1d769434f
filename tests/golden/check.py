"""`python -m tests.golden.check DIR...`: every recording of the folders against this project, array by array.

DIR is a folder with a manifest.json or a parent of such folders. One line per array: case, name, largest error, limit
(0: exact); what does not hold is listed once more at the end of its folder. Exit status 0: all hold; 1: some array does
not, or a recording asks for something this project does not compute; 2: a folder or a file cannot be read. Where there
is more than one kind of trouble, the first decides; all is reported whatever happens.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

import tests.golden.run_flaxformer
import tests.golden.run_hf
import tests.golden.run_mesh_tf  # noqa: F401  each of the modules registers its runners
from tests.golden.compare import RUNNERS, Case, Comparison, Unsupported
from tests.golden.reader import read_manifest

USAGE = "usage: python -m tests.golden.check DIR...   (folders with a manifest.json, or parents of such folders)"


class Unreadable(Exception):
    """A folder without a recording that this reader understands."""


class Trouble(NamedTuple):
    """Something that does not hold (1) or cannot be read (2)."""

    status: int
    text: str


def folders_of(path: Path) -> list[Path]:
    """`path` itself or the folders in it that have a manifest; raises `Unreadable` if there is none."""
    if not path.is_dir():
        raise Unreadable(f"{path} is not a folder")
    if (path / "manifest.json").is_file():
        return [path]
    found = sorted(child for child in path.iterdir() if (child / "manifest.json").is_file())
    if not found:
        raise Unreadable(f"{path}: no manifest.json in it or in a folder directly below")
    for child in sorted(path.iterdir()):
        if child.is_dir() and child not in found:
            print(f"{child}: no manifest.json in it, not checked")
    return found


def kind_of(folder: Path) -> str:
    """The kind that the folder's manifest names; raises `Unreadable` for one that no runner takes."""
    try:
        kind = read_manifest(folder).get("folder")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise Unreadable(f"{folder}/manifest.json cannot be read: {error!r}") from error
    if kind not in RUNNERS:
        raise Unreadable(f"{folder}/manifest.json: folder kind {kind!r}; known are {', '.join(sorted(RUNNERS))}")
    return kind


def comparisons(folder: Path) -> Iterator[tuple[str, Comparison]]:
    """What the runner of the folder's kind finds."""
    return ((case, found) for case, compared in RUNNERS[kind_of(folder)](folder) for found in compared)


def uncompared(folder: Path, seen: set[str]) -> list[str]:
    """Cases and tables of the manifest that no comparison in `seen` names."""
    manifest = read_manifest(folder)
    entries = [case["case"] for case in manifest.get("cases", [])] + [one["file"] for one in manifest.get("tables", [])]
    return [entry for entry in entries if not any(entry in name for name in seen)]


def check(folder: Path) -> int:
    """Print one line per array, and all troubles at the end; 0, or the exit status of the first trouble."""
    kind = kind_of(folder)
    print(f"{folder}  ({kind})")
    count, holding, seen, troubles = 0, 0, set[str](), list[Trouble]()
    for case, found in drawn(RUNNERS[kind](folder), troubles):
        verdict = "ok" if found.holds else "UNKNOWN" if found.unknown else "MISMATCH"
        limit = "exact" if found.limit == 0 else f"limit {found.limit:.0e}"
        print(f"  {verdict:<8} {case}  {found.array}  error {found.error:.2e}  {limit}")
        count, holding = count + 1, holding + found.holds
        seen.add(case)
        if found.unknown:
            troubles.append(Trouble(1, f"not supported: {case}: {found.unknown}"))
        elif not found.holds:
            troubles.append(Trouble(1, f"{case}: {found.array} differs by {found.error:.3e} ({limit})"))
    if not troubles and (missing := uncompared(folder, seen)):
        troubles.append(Trouble(2, f"nothing was recorded that can be compared in {', '.join(missing)}"))
    if not troubles and not count:
        troubles.append(Trouble(2, "the manifest lists neither cases nor tables"))
    for trouble in troubles:
        print(f"{folder}: {trouble.text}", file=sys.stderr if trouble.status == 2 else sys.stdout)
    print(f"{folder}: {f'{holding} of ' if holding < count else ''}{count} comparisons hold")
    return troubles[0].status if troubles else 0


def drawn(cases: Iterator[Case], troubles: list[Trouble]) -> Iterator[tuple[str, Comparison]]:
    """Every comparison of every case; one that breaks off, noted in `troubles`, ends no other."""
    unfinished = True
    while unfinished:
        try:
            for case, compared in cases:
                yield from ((case, found) for found in compared)
            unfinished = False
        except Unsupported as error:
            troubles.append(Trouble(1, f"not supported: {error}"))
        except (OSError, KeyError, ValueError) as error:
            troubles.append(Trouble(2, f"{type(error).__name__}: {error}"))


def main(arguments: Sequence[str]) -> int:
    """The command; returns its exit status."""
    if not arguments or arguments[0].startswith("-"):
        print(USAGE, file=sys.stdout if arguments and arguments[0] in ("-h", "--help") else sys.stderr)
        return 0 if arguments and arguments[0] in ("-h", "--help") else 2
    try:
        folders = [folder for argument in arguments for folder in folders_of(Path(argument))]
        statuses = [check(folder) for folder in folders]
    except Unreadable as error:
        print(error, file=sys.stderr)
        return 2
    return next(filter(None, statuses), 0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    raise SystemExit(main(sys.argv[1:]))
