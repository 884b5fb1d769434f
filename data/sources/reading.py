"""The rows of one file, whatever its format; only the column of the text is looked at.

A row without usable text is given as a `DataError` and reading goes on; what makes the rest of a file unreadable is
raised. Lines end with a line feed (in text files with CR LF or CR as well) and with nothing else.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from conf.errors import DataError
from conf.reading.paths import format_of
from data.sources.columns import column_rows
from data.sources.json_rows import json_rows
from data.sources.splitting import split_text
from data.sources.texts import Row
from data.sources.usable import FILE_FIX, MARK, check_mark, not_utf8


def read_rows(path: Path, field: str) -> Iterator[Row]:
    """The texts in `field` of the rows of `path`; of a text file, which has no fields, its documents.

    Raises:
        DataError: the file cannot be opened, decompressed or parsed (on).
    """
    rows = 0
    try:
        for row in _rows(path, field):
            yield row
            rows += 1
    except (OSError, EOFError, zlib.error) as error:
        on = f" on after row {rows}" if rows else ""
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read{on} ({reason}); {FILE_FIX}") from error


def _rows(path: Path, field: str) -> Iterator[Row]:
    kind = format_of(path.name)
    assert kind is not None, f"{path}: `text_files` lets no such name through"
    if kind in ("parquet", "arrow"):
        yield from column_rows(path, field, kind)
        return
    with _open(path) as handle:
        yield from json_rows(path, handle, field) if kind == "json" else _text_rows(path, handle)


def _open(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path, "rb")) if path.suffix.lower() == ".gz" else path.open("rb")


def _text_rows(path: Path, handle: IO[bytes]) -> Iterator[Row]:
    content = handle.read()
    check_mark(path, content)
    try:
        text = content.decode().removeprefix(MARK)
        wrong = f"byte 0x00 at position {content.index(0) + 1} is no text" if b"\0" in content else None
    except UnicodeDecodeError as error:
        text, wrong = "", not_utf8(error)
    if wrong is not None:
        yield DataError(
            f"{path}: cannot be read as UTF-8 text ({wrong}); convert it (for example `iconv -f latin1 -t utf-8`, or "
            "-f utf-16le), leave it out of data.files, or skip such files with data.bad_rows=skip"
        )
        return
    yield from split_text(text.replace("\r\n", "\n").replace("\r", "\n"))
