"""Documents of local text, JSONL, Parquet and Arrow files, with errors that name the file and the row.

A text file is one document, as a web page is in C4; a long one is cut at blank lines into documents of some kB so that
validation can be a share of it. A record of the other formats is one document.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from conf.errors import DataError
from conf.schema import DataConfig
from data.files import expand_globs
from data.sources.hub import builder_of, stream_files, text_of_row
from data.sources.splitting import split_text
from data.sources.texts import Texts, file_states

_TEXT_FILES_AT_ONCE = 1_000
_EXCERPT_CHARS = 80


def texts(data: DataConfig) -> Texts:
    """The documents of `data.files`. Raises DataError when a glob matches nothing or a file is held out as well."""
    files = expand_globs(data.files, field="data.files")
    held_out = expand_globs(data.validation_files, field="data.validation_files") if data.validation_files else ()
    both = sorted(str(path) for path in set(files) & set(held_out))
    if both:
        raise DataError(f"data.validation_files: {both[0]} is in data.files too; the splits must not overlap")

    def read() -> Iterator[str]:
        return local_documents(files, field=data.text_field, cache_dir=Path(data.cache_dir).expanduser())

    return Texts(read=read, state=file_states(files))


def local_documents(paths: Sequence[Path], *, field: str, cache_dir: Path) -> Iterator[str]:
    """Documents of `paths` in their order.

    Raises:
        DataError: a file cannot be read, or a row has no text in `field`.
    """
    start = 0
    while start < len(paths):
        builder = builder_of(paths[start])
        if builder != "text":
            yield from _records(paths[start], builder, field, cache_dir)
            start += 1
            continue
        end = start
        while end < len(paths) and end - start < _TEXT_FILES_AT_ONCE and builder_of(paths[end]) == "text":
            end += 1
        yield from _texts(paths[start:end], cache_dir)
        start = end


def _texts(paths: Sequence[Path], cache_dir: Path) -> Iterator[str]:
    finished = 0
    try:
        for row in stream_files("text", paths, cache_dir):
            yield from split_text(row["text"])
            finished += 1
    except DataError:
        raise
    except Exception as error:
        path = paths[min(finished, len(paths) - 1)]
        raise DataError(
            f"{path}: cannot be read as UTF-8 text ({type(error).__name__}: {error}); convert it (for example "
            "`iconv -t utf-8`), split files above 1 GB, or leave it out of data.files"
        ) from error


def _records(path: Path, builder: str, field: str, cache_dir: Path) -> Iterator[str]:
    if path.stat().st_size == 0:
        return  # the builders cannot infer columns from nothing
    number = -1
    try:
        for number, row in enumerate(stream_files(builder, [path], cache_dir)):
            yield text_of_row(row, field, f"{path}: row {number + 1}")
    except DataError:
        raise
    except Exception as error:
        raise _diagnose(path, builder, number + 1, error) from error


def diagnose_json(path: Path) -> DataError | None:
    """Where a JSON lines file is broken; read again line by line, since the fast parser names only blocks."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as handle:
            for number, line in enumerate(handle, start=1):
                try:
                    if line.strip() and not isinstance(json.loads(line), dict):
                        raise ValueError("not a JSON object")
                except ValueError as reason:
                    shown = line.strip()[:_EXCERPT_CHARS]
                    return DataError(f"{path}: row {number}: {reason}: {shown!r}; fix or delete the row")
    except (OSError, EOFError, UnicodeDecodeError) as reason:
        return DataError(f"{path}: cannot be read ({reason}); restore the file or leave it out of data.files")
    return None


def _diagnose(path: Path, builder: str, after_row: int, error: Exception) -> DataError:
    found = diagnose_json(path) if builder == "json" else None
    if found is not None:
        return found
    cause = error.__cause__ or error
    return DataError(
        f"{path}: cannot be read as {builder} after row {after_row} ({type(cause).__name__}: {cause}); check that the "
        "file is whole and its columns have the same types throughout"
    )
