"""Rows of JSON: a record a line, or one list of records, or (.json) records that run over several lines.

A line ends with a line feed: the other characters that Unicode counts as line ends occur inside texts. Blank lines are
no rows.
"""

from __future__ import annotations

import io
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from conf.errors import DataError
from data.sources.texts import Row
from data.sources.usable import FILE_FIX, MARK, ROW_FIX, check_mark, not_utf8, record_text

_EXCERPT_CHARS = 80
_BLANK = re.compile(r"[ \t\n\r]*")
# Numbers are of no interest, and Python refuses whole ones of more than 4,300 digits.
_DECODER = json.JSONDecoder(parse_int=lambda digits: 0)


def json_rows(path: Path, handle: IO[bytes], field: str) -> Iterator[Row]:
    """Texts in `field` of the records of an open file. Raises DataError when records without lines are broken."""
    start = handle.readline()
    check_mark(path, start)
    lines = itertools.chain([start.removeprefix(MARK.encode())], handle)
    head = _through_content(lines)
    first = head[-1].strip() if head else b""
    if first.startswith(b"["):
        more = _through_content(lines)
        head += more
        if not (more and more[-1].strip() and _is_whole(first)):  # else the first of several lines is a list
            yield from _listed_rows(path, b"".join([*head, *lines]), field)
            return
    elif first and path.name.lower().removesuffix(".gz").endswith(".json") and not _is_whole(first):
        whole = b"".join([*head, *lines])
        if _begins_with_record(whole):
            yield from _listed_rows(path, whole, field)
            return
        head, lines = [], io.BytesIO(whole)
    yield from _line_rows(path, itertools.chain(head, lines), field)


def _through_content(lines: Iterator[bytes]) -> list[bytes]:
    """Lines up to the first that is not blank, included."""
    taken: list[bytes] = []
    for line in lines:
        taken.append(line)
        if line.strip():
            break
    return taken


def _line_rows(path: Path, lines: Iterator[bytes], field: str) -> Iterator[Row]:
    row = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row += 1
        place = f"{path}: row {row}" + (f" (line {number})" if number != row else "")
        try:
            record = _parsed(line)
        except ValueError as error:
            excerpt = line.strip()[:_EXCERPT_CHARS].decode(errors="replace")
            yield DataError(f"{place}: {error}: {excerpt!r}; {ROW_FIX}")
            continue
        yield _row(record, field, place)


def _row(record: object, field: str, place: str) -> Row:
    try:
        return record_text(record, field)
    except ValueError as error:
        return DataError(f"{place}: {error}; {ROW_FIX}")


def _parsed(line: bytes) -> object:
    """The value of one line. Raises ValueError that says what is wrong with it."""
    try:
        return _DECODER.decode(line.decode())
    except UnicodeDecodeError as error:
        raise ValueError(not_utf8(error)) from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("brackets are nested too deeply") from error


def _is_whole(line: bytes) -> bool:
    try:
        _parsed(line)
    except ValueError:
        return False
    return True


def _begins_with_record(content: bytes) -> bool:
    try:
        text = content.decode()
        _DECODER.raw_decode(text, _after_blank(text, 0))
    except (ValueError, RecursionError):
        return False
    return True


def _listed_rows(path: Path, content: bytes, field: str) -> Iterator[Row]:
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: {not_utf8(error)}; {FILE_FIX}") from error
    for number, record in enumerate(_records(path, text), start=1):
        # a list of texts is a list of records with nothing but a text
        yield _row({field: record} if isinstance(record, str) else record, field, f"{path}: row {number}")


def _records(path: Path, text: str) -> Iterator[object]:
    """Values of a list, or one after the other; a broken one cannot be left out, since nobody knows where it ends."""
    at, row = _after_blank(text, 0), 0
    listed = text.startswith("[", at)
    at = _after_blank(text, at + 1) if listed else at
    while at < len(text) and not (listed and text[at] == "]"):
        row += 1
        try:
            value, at = _DECODER.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}: row {row}: {error.msg} at line {error.lineno}; fix the file") from error
        except RecursionError as error:
            raise DataError(f"{path}: row {row}: brackets are nested too deeply; fix the file") from error
        yield value
        at = _after_blank(text, at)
        if listed and text.startswith(",", at):
            at = _after_blank(text, at + 1)
        elif listed and not text.startswith("]", at):
            raise DataError(f"{path}: row {row}: no comma and no closing bracket after it; {FILE_FIX}")
    if listed and text[at + 1 :].strip():
        raise DataError(f"{path}: there is more after the list of {row} rows; give a list or a record a line")


def _after_blank(text: str, at: int) -> int:
    found = _BLANK.match(text, at)
    assert found is not None, "it matches nothing as well"
    return found.end()
