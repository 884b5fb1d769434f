"""Documents of local text, JSON, Parquet and Arrow files.

A text file is one document, as a web page is in C4; a long one is cut at blank lines into documents of some kB so that
validation can be a share of it. A record of the other formats is one document.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from conf.reading.paths import text_files
from conf.schema import DataConfig
from data.sources.reading import read_rows
from data.sources.texts import Row, Texts, file_states


def texts(data: DataConfig) -> Texts:
    """The documents of `data.files`. Raises ConfigError when a glob matches nothing."""
    files = text_files("data.files", data.files)
    return Texts(read=lambda: local_documents(files, field=data.text_field), state=file_states(files))


def local_documents(paths: Sequence[Path], *, field: str) -> Iterator[Row]:
    """Documents of `paths` in their order. Raises DataError when a file cannot be read."""
    for path in paths:
        yield from read_rows(path, field)
