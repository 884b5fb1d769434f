"""What a source of finite text gives, whichever it is; the table of names is `conf.sources`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from conf.errors import DataError
from conf.schema import DataConfig

Row = str | DataError  # the text of a row, or what is wrong with it; reading goes on with the next row


@dataclass(frozen=True, kw_only=True, slots=True)
class Texts:
    """Texts that can be read again and again in the same order; each becomes a document of one of the splits.

    `state` is anything JSON can write that changes when the texts do, found without reading them.
    """

    read: Callable[[], Iterator[Row]]
    state: object


class BadRows:
    """What `data.bad_rows` does with rows that hold no usable text: refuse the first, or skip and count them.

    Skipped ones are told to `report` when their number is 1, 10, 100, ..: a stream has no end at which to tell it.
    """

    def __init__(self, data: DataConfig, *, report: Callable[[str], None] = lambda text: None) -> None:
        self._skip, self._report = data.bad_rows == "skip", report
        self.count, self.first = 0, ""

    def note(self, fault: DataError) -> None:
        """Raise `fault`, or count it."""
        if not self._skip:
            raise fault
        self.count += 1
        self.first = self.first or str(fault)
        if self.count == 10 ** (len(str(self.count)) - 1):
            self._report(skipped_note(self.count, self.first))

    def good(self, rows: Iterable[Row]) -> Iterator[str]:
        """The texts among `rows`."""
        for row in rows:
            if isinstance(row, DataError):
                self.note(row)
            else:
                yield row


def skipped_note(count: int, first: str) -> str:
    """What to tell a person about rows that were skipped."""
    return f"data.bad_rows=skip: {count:,} bad row{'s' if count > 1 else ''} skipped; the first is {first}"


def file_states(paths: Sequence[Path], *, root: Path | None = None) -> list[list[str | int]]:
    """Name (below `root`, else absolute), size and times of each file: what changes when its content does.

    The time of its last change as well, which nobody can set: a file that is put in another's place may keep the other.
    """
    states: list[list[str | int]] = []
    for path in paths:
        found = path.stat()
        name = path.relative_to(root) if root else path.resolve()
        states.append([str(name), found.st_size, found.st_mtime_ns, found.st_ctime_ns])
    return states
