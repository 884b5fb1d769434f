"""What a source of finite text gives, whichever it is; the table of names is `conf.sources`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Texts:
    """Texts that can be read again and again in the same order; each becomes a document of one of the splits.

    `state` is anything JSON can write that changes when the texts do, found without reading them.
    """

    read: Callable[[], Iterator[str]]
    state: object


def file_states(paths: Sequence[Path], *, root: Path | None = None) -> list[list[str | int]]:
    """Name (below `root`, else absolute), size and time of each file: what changes when its content does."""
    states: list[list[str | int]] = []
    for path in paths:
        found = path.stat()
        name = path.relative_to(root) if root else path.resolve()
        states.append([str(name), found.st_size, found.st_mtime_ns])
    return states
