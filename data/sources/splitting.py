"""Long texts cut into documents of a few kB at natural boundaries."""

from __future__ import annotations

import re
from collections.abc import Iterator

MIN_CHARS = 2_048  # a document may end before a top-level definition
SOFT_CHARS = 5_120  # ... or at a blank line
HARD_CHARS = 16_384  # ... or at any line
_LINE = re.compile(r"[^\n]*\n|[^\n]+")  # str.splitlines also cuts at form feeds and separators inside texts
_TOP_LEVEL = re.compile(r"(?:def |class |async def |@|if __name__)")


def split_text(text: str, *, code: bool = False) -> Iterator[str]:
    """Documents that joined give `text` back; lines are never cut unless one alone exceeds the hard limit.

    `code`: also cut before a top-level `def`, `class` or decorator that follows a blank line.
    """
    lines: list[str] = []
    size, after_blank = 0, False
    for line in _bounded_lines(text):
        boundary = after_blank and (size >= SOFT_CHARS or (code and size >= MIN_CHARS and _TOP_LEVEL.match(line)))
        if lines and (boundary or size + len(line) > HARD_CHARS):
            yield "".join(lines)
            lines, size = [], 0
        lines.append(line)
        size += len(line)
        after_blank = not line.strip()
    if lines:
        yield "".join(lines)


def _bounded_lines(text: str) -> Iterator[str]:
    for line in _LINE.findall(text):
        for start in range(0, len(line), HARD_CHARS):
            yield line[start : start + HARD_CHARS]
