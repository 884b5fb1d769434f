"""The one place that imports Hugging Face `datasets`: lazily and without torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from conf.errors import DataError
from data.sources.reading import read_rows
from data.sources.texts import Row
from data.sources.usable import record_text

_HIDDEN_FRAMEWORKS = {"USE_TORCH": "0", "USE_TF": "0", "USE_JAX": "0"}


@cache
def datasets_module() -> ModuleType:
    """`datasets`, told at import that torch, TensorFlow and JAX are not there (it would otherwise load them later)."""
    with _environment(_HIDDEN_FRAMEWORKS):
        import datasets
    datasets.disable_progress_bars()
    return datasets


def stream_files(paths: Sequence[Path], field: str) -> Any:
    """A `datasets.IterableDataset` over local files, a shard each, read as they lie (no copy, no network).

    Its rows are {"text": text or None, "fault": what is wrong with it}.
    """
    arguments = {"paths": [str(path) for path in paths], "field": field}
    return datasets_module().IterableDataset.from_generator(_file_rows, gen_kwargs=arguments)


def _file_rows(paths: Sequence[str], field: str) -> Iterator[dict[str, str | None]]:
    for path in paths:
        for row in read_rows(Path(path), field):
            bad = isinstance(row, DataError)
            yield {"text": None if bad else row, "fault": str(row) if bad else None}


def stream_hub(path: str, name: str | None, *, split: str, revision: str | None, cache_dir: Path) -> Any:
    """A `datasets.IterableDataset` of a hub set.

    Raises:
        DataError: it cannot be reached or does not exist.
    """
    try:
        return datasets_module().load_dataset(
            path, name, split=split, revision=revision, streaming=True, cache_dir=str(cache_dir / "hf")
        )
    except Exception as error:
        raise DataError(
            f"data.hub_path={path} data.hub_name={name} split {split}, revision {revision}: cannot be opened "
            f"({type(error).__name__}: {error}); check the names and the network, or read local files with "
            "data.hub_files"
        ) from error


def row_of(record: dict[str, Any], field: str, place: str) -> Row:
    """The text of one record of a hub set, or what is wrong with it."""
    try:
        return record_text(record, field)
    except ValueError as error:
        return DataError(f"{place}: {error}; skip such rows with data.bad_rows=skip")


@contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
