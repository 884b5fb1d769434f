"""`python -m tests.golden.check DIR...`: every recording of the folders against this project, array by array.

DIR is a folder with a manifest.json or a parent of such folders. One line per array: case, name, largest error, limit
(0: exact). Exit status 0: all hold; 1: the first that does not, or a recording that asks for something this project
does not compute; 2: a folder that cannot be read.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

import tests.golden.run_flaxformer
import tests.golden.run_hf
import tests.golden.run_mesh_tf  # noqa: F401  each of the modules registers its runners
from tests.golden.compare import RUNNERS, Comparison, Unsupported
from tests.golden.reader import read_manifest

USAGE = "usage: python -m tests.golden.check DIR...   (folders with a manifest.json, or parents of such folders)"


class Unreadable(Exception):
    """A folder without a recording that this reader understands."""


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
    return RUNNERS[kind_of(folder)](folder)


def uncompared(folder: Path, seen: set[str]) -> list[str]:
    """Cases and tables of the manifest that no comparison in `seen` names."""
    manifest = read_manifest(folder)
    entries = [case["case"] for case in manifest.get("cases", [])] + [one["file"] for one in manifest.get("tables", [])]
    return [entry for entry in entries if not any(entry in name for name in seen)]


def check(folder: Path) -> int:
    """Print one line per array; 0, or 1 at the first that does not hold."""
    kind = kind_of(folder)
    print(f"{folder}  ({kind})")
    count, seen = 0, set[str]()
    try:
        for case, found in RUNNERS[kind](folder):
            verdict = "ok" if found.holds else "MISMATCH"
            limit = "exact" if found.limit == 0 else f"limit {found.limit:.0e}"
            print(f"  {verdict:<8} {case}  {found.array}  error {found.error:.2e}  {limit}")
            count += 1
            seen.add(case)
            if not found.holds:
                print(f"{folder}: {case}: {found.array} differs by {found.error:.3e} ({limit})")
                return 1
    except Unsupported as error:
        print(f"{folder}: not supported: {error}")
        return 1
    except (OSError, KeyError, json.JSONDecodeError, ValueError) as error:
        raise Unreadable(f"{folder}: {type(error).__name__}: {error}") from error
    if missing := uncompared(folder, seen):
        raise Unreadable(f"{folder}: nothing was recorded that can be compared in {', '.join(missing)}")
    if not count:
        raise Unreadable(f"{folder}: the manifest lists neither cases nor tables")
    print(f"{folder}: {count} comparisons hold")
    return 0


def main(arguments: Sequence[str]) -> int:
    """The command; returns its exit status."""
    if not arguments or arguments[0].startswith("-"):
        print(USAGE, file=sys.stdout if arguments and arguments[0] in ("-h", "--help") else sys.stderr)
        return 0 if arguments and arguments[0] in ("-h", "--help") else 2
    try:
        folders = [folder for argument in arguments for folder in folders_of(Path(argument))]
        for folder in folders:
            if check(folder):
                return 1
    except Unreadable as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    raise SystemExit(main(sys.argv[1:]))
