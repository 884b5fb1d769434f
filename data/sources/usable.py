"""What counts as text: UTF-8 without a byte order mark at its start, and the words for what does not."""

from __future__ import annotations

import codecs
from pathlib import Path

from conf.errors import DataError

MARK = "\ufeff"
ROW_FIX = "fix or delete the row, or skip such rows with data.bad_rows=skip"
FILE_FIX = "restore the file or leave it out of data.files"
_OTHER_MARKS = {  # UTF-32's before the one of UTF-16 that it begins with
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
# Which of the first four bytes are 0 where the first two characters are of one byte in UTF-8.
_UNMARKED = {"x0x0": "UTF-16LE", "0x0x": "UTF-16BE", "x000": "UTF-32LE", "000x": "UTF-32BE"}


def check_mark(path: Path, start: bytes) -> None:
    """Raise `DataError` when a file begins as one of another encoding does, with its byte order mark or without."""
    found = next(
        ((f"with the byte order mark of {n}", n) for m, n in _OTHER_MARKS.items() if start.startswith(m)), None
    )
    if found is None and (name := _UNMARKED.get("".join("x" if byte else "0" for byte in start[:4]))):
        found = f"as {name} does", name
    if found is not None:
        raise DataError(
            f"{path}: cannot be read as UTF-8 text (it begins {found[0]}); convert it with `iconv -f {found[1]} -t "
            "UTF-8` or leave it out of data.files"
        )


def not_utf8(error: UnicodeDecodeError) -> str:
    """What is wrong with bytes that are not UTF-8."""
    return f"byte 0x{error.object[error.start]:02x} at position {error.start + 1} is not UTF-8"


def usable_text(value: object, field: str) -> str:
    """The text of a row's field, without a mark at its start. Raises ValueError that says why it is none."""
    if not isinstance(value, str):
        shown = "null" if value is None else f"of type {type(value).__name__}"
        raise ValueError(f"field {field!r} is {shown}, not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = f"U+{ord(value[error.start]):04X} at character {error.start + 1}"
        raise ValueError(f"field {field!r} holds half of a surrogate pair ({half})") from None
    return value.removeprefix(MARK)


def record_text(record: object, field: str) -> str:
    """The text in `field` of a record. Raises ValueError that says why there is none."""
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    if field not in record:
        raise ValueError(f"has no field {field!r} but {sorted(map(str, record))}; set data.text_field")
    return usable_text(record[field], field)
