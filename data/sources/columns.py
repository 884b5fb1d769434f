"""Rows of Parquet and Arrow files: the one column that holds the text, as bytes that are decoded row by row.

What the other columns hold, and whether all files agree about them, does not matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from conf.errors import DataError
from data.sources.texts import Row
from data.sources.usable import FILE_FIX, ROW_FIX, not_utf8, usable_text

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH_ROWS = 1_024


def column_rows(path: Path, field: str, kind: Literal["parquet", "arrow"]) -> Iterator[Row]:
    """Texts in the column `field`. Raises DataError when the file is damaged or has no such column."""
    import pyarrow as pa  # slow to import, and most text lies in other files

    columns = _parquet_columns(path, field) if kind == "parquet" else _arrow_columns(path, field)
    row = 0
    try:
        for column in columns:
            for value in _values(column):
                row += 1
                yield _row(value, field, f"{path}: row {row}")
    except (pa.ArrowException, UnicodeDecodeError) as error:  # the latter of the names of columns
        on = f" on after row {row}" if row else ""
        raise DataError(f"{path}: cannot be read{on} as {kind} ({error}); {FILE_FIX}") from error


def _row(value: object, field: str, place: str) -> Row:
    try:
        return usable_text(value.decode() if isinstance(value, _Text) else value, field)
    except UnicodeDecodeError as error:
        return DataError(f"{place}: {not_utf8(error)}; {ROW_FIX}")
    except ValueError as error:
        return DataError(f"{place}: {error}; {ROW_FIX}")


class _Text(bytes):
    """What a column of texts holds, not yet known to be UTF-8."""


def _values(column: Any) -> Iterator[object]:
    import pyarrow as pa

    column.validate()
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary())
        column.validate(full=True)
        yield from (None if value is None else _Text(value) for value in column.to_pylist())
    else:
        yield from column.to_pylist()


def _parquet_columns(path: Path, field: str) -> Iterator[pa.Array]:
    from pyarrow import parquet

    with parquet.ParquetFile(path, page_checksum_verification=True) as file:
        _check_field(path, field, file.schema_arrow.names)
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=[field]):
            yield batch.column(0)


def _arrow_columns(path: Path, field: str) -> Iterator[pa.Array]:
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        streams = True
        try:
            schema = pa.ipc.open_stream(source).schema
        except (OSError, pa.ArrowInvalid):
            streams, schema = False, pa.ipc.open_file(source).schema
        _check_field(path, field, schema.names)
        options = pa.ipc.IpcReadOptions(included_fields=[schema.names.index(field)])
        source.seek(0)
        if streams:
            batches = iter(pa.ipc.open_stream(source, options=options))
        else:
            file = pa.ipc.open_file(source, options=options)
            batches = (file.get_batch(number) for number in range(file.num_record_batches))
        for batch in batches:
            yield batch.column(0)


def _check_field(path: Path, field: str, names: list[str]) -> None:
    if field not in names:
        raise DataError(f"{path}: has no column {field!r} but {sorted(names)}; set data.text_field to one of them")
    if (count := names.count(field)) > 1:
        raise DataError(f"{path}: has {count} columns {field!r}; needs one: rename the others, or set data.text_field")
