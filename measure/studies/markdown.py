"""Markdown of a study: tables, and a generated block that is replaced inside a page whose other text is by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from conf.errors import DataError
from conf.safety.writing import write_whole

CURVE_ROWS = 10


def markers(study: str) -> tuple[str, str]:
    """The lines around a study's generated block."""
    return f"<!-- begin {study}: written by `pointsman study {study}`, do not edit -->", f"<!-- end {study} -->"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table; the first column is text, the others are numbers and stand right."""
    assert all(len(row) == len(header) for row in rows), "ragged table"
    rule = ["---", *("---:" for _ in header[1:])]
    return ["| " + " | ".join(cells) + " |" for cells in (header, rule, *rows)]


def some_steps(steps: Sequence[int]) -> list[int]:
    """Every n-th of increasing steps, at most some ten, with the first and the last."""
    stride = max(1, -(-(len(steps) - 1) // CURVE_ROWS))
    return sorted({*steps[::stride], steps[-1]})


def replace_block(page: str, study: str, lines: Sequence[str]) -> str:
    """`page` with the block's content replaced. Raises DataError when it does not hold the two markers once, in order.

    What stands outside the markers is not touched.
    """
    begin, end = markers(study)
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        raise DataError(f"the page needs the line {begin!r} and after it {end!r}, once each, around the generated text")
    head, rest = page.split(begin)
    _, tail = rest.split(end)
    return head + "\n".join([begin, *lines, end]) + tail


def write_page(path: Path, study: str, lines: Sequence[str]) -> None:
    """Replace the block of an existing page, or write a page of the block alone; whole or not at all."""
    begin, end = markers(study)
    before = path.read_text(encoding="utf-8") if path.exists() else f"{begin}\n{end}\n"
    try:
        after = replace_block(before, study, lines)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, after)


def publish(lines: Sequence[str], study: str, page: Path | None) -> None:
    """Print what a study found, and write it into its page where one is named."""
    print("\n".join(lines))
    if page is not None:
        write_page(page, study, lines)
        print(f"written to {page}")
