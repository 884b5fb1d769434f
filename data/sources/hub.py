"""The one place that imports Hugging Face `datasets`: lazily, without torch, with explicit builders for local files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from conf.errors import DataError

_HIDDEN_FRAMEWORKS = {"USE_TORCH": "0", "USE_TF": "0", "USE_JAX": "0"}
_BUILDERS = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".rst": "text",
    ".jsonl": "json",
    ".json": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
_GZIP_BUILDERS = ("text", "json")
_BUILDER_OPTIONS = {"text": {"sample_by": "document"}, "json": {"parse_agent_traces": False}}


@cache
def datasets_module() -> ModuleType:
    """`datasets`, told at import that torch, TensorFlow and JAX are not there (it would otherwise load them later)."""
    with _environment(_HIDDEN_FRAMEWORKS):
        import datasets
    datasets.disable_progress_bars()
    return datasets


def builder_of(path: Path) -> str:
    """Name of the `datasets` builder that reads `path`, by its suffix (.gz before it allowed for text and JSON).

    Raises:
        DataError: the suffix is unknown.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    zipped = bool(suffixes) and suffixes[-1] == ".gz"
    suffix = (suffixes[:-1] if zipped else suffixes)[-1:] or [""]
    builder = _BUILDERS.get(suffix[0])
    if builder is None or (zipped and builder not in _GZIP_BUILDERS):
        raise DataError(
            f"{path}: do not know how to read {path.name!r}; known are {', '.join(_BUILDERS)}, and .gz of text and "
            "JSON; rename or convert it, or narrow the glob in data.files"
        )
    return builder


def stream_files(builder: str, paths: Sequence[Path], cache_dir: Path) -> Any:
    """A `datasets.IterableDataset` over local files, read as they lie (no copy, no network)."""
    return datasets_module().load_dataset(
        builder,
        data_files=[str(path.resolve()) for path in paths],
        split="train",
        streaming=True,
        cache_dir=str(cache_dir / "hf"),
        **_BUILDER_OPTIONS.get(builder, {}),
    )


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


def text_of_row(row: dict[str, Any], field: str, place: str) -> str:
    """The text of one record. Raises DataError naming `place` and the fields that exist."""
    if field not in row:
        raise DataError(f"{place}: has no field {field!r} but {sorted(row)}; set data.text_field to one of them")
    text = row[field]
    if not isinstance(text, str):
        shown = "null or missing" if text is None else f"of type {type(text).__name__}"
        raise DataError(f"{place}: field {field!r} is {shown}; needs text; fix the row or set data.text_field")
    return text


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
