"""Finite sources: documents in a fixed order, each in the training or the validation split, and a cheap signature.

The signature changes when the files or the settings that make documents of them change (paths, sizes, times); the
fingerprint, made by reading everything once, is a checksum of the documents themselves.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from conf.errors import DataError
from conf.schema import DataConfig
from data.files import expand_globs, sha256_bytes
from data.sources.local import local_documents
from data.sources.stdlib import stdlib_documents, stdlib_files, stdlib_root

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")
DOCUMENTS_VERSION = 1  # raise it when the same files would give other documents
_HASH_RANGE = 1 << 64


class Document(NamedTuple):
    """A piece of text and the split it belongs to."""

    split: Split
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class FiniteSource:
    """Documents that can be read again and again in the same order."""

    name: str
    signature: str
    documents: Callable[[], Iterator[Document]]


def cache_folder(data: DataConfig) -> Path:
    """`data.cache_dir` with ~ expanded."""
    return Path(data.cache_dir).expanduser()


def is_validation(text: str, fraction: float) -> bool:
    """Whether a document is held out: its hash falls into the first `fraction` of the range, whatever its place."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * _HASH_RANGE


def finite_source(data: DataConfig) -> FiniteSource:
    """The source of `data.source` = stdlib or text. Raises DataError when a glob matches nothing."""
    if data.source == "stdlib":
        return _stdlib_source(data)
    assert data.source == "text", data.source
    return _text_source(data)


def _stdlib_source(data: DataConfig) -> FiniteSource:
    root = stdlib_root()
    files = stdlib_files(root)
    if not files:
        raise DataError(f"data=stdlib: no source files below {root}; use data=text data.files='...' on this machine")
    held_out = _validation_files(data)
    signature = _signature(data, [*files, *held_out], root=root)

    def documents() -> Iterator[Document]:
        yield from _assign(stdlib_documents(root), data, split_by_hash=not held_out)
        yield from _held_out(held_out, data)

    return FiniteSource(name="stdlib", signature=signature, documents=documents)


def _text_source(data: DataConfig) -> FiniteSource:
    if not data.files:
        raise DataError("data.files: empty; data=text needs files; try data.files='docs/*.jsonl'")
    files, held_out = expand_globs(data.files, field="data.files"), _validation_files(data)
    both = sorted(str(path) for path in set(files) & set(held_out))
    if both:
        raise DataError(f"data.validation_files: {both[0]} is in data.files too; the splits must not overlap")

    def documents() -> Iterator[Document]:
        texts = local_documents(files, field=data.text_field, cache_dir=cache_folder(data))
        yield from _assign(texts, data, split_by_hash=not held_out)
        yield from _held_out(held_out, data)

    return FiniteSource(name="text", signature=_signature(data, [*files, *held_out], root=None), documents=documents)


def _validation_files(data: DataConfig) -> tuple[Path, ...]:
    return expand_globs(data.validation_files, field="data.validation_files") if data.validation_files else ()


def _held_out(files: Sequence[Path], data: DataConfig) -> Iterator[Document]:
    for text in local_documents(files, field=data.text_field, cache_dir=cache_folder(data)):
        if text.strip():
            yield Document("validation", text)


def _assign(texts: Iterator[str], data: DataConfig, *, split_by_hash: bool) -> Iterator[Document]:
    """Blank documents are dropped; the others go to a split."""
    for text in texts:
        if text.strip():
            held_out = split_by_hash and is_validation(text, data.validation_fraction)
            yield Document("validation" if held_out else "train", text)


def _signature(data: DataConfig, files: Sequence[Path], *, root: Path | None) -> str:
    """sha256 of everything that decides the documents, without reading them."""
    states = []
    for path in files:
        state = path.stat()
        states.append(
            [
                str(path.relative_to(root) if root and path.is_relative_to(root) else path.resolve()),
                state.st_size,
                state.st_mtime_ns,
            ]
        )
    settings = [
        DOCUMENTS_VERSION,
        data.source,
        list(data.validation_files),
        data.validation_fraction,
        data.text_field,
        sys.version if data.source == "stdlib" else None,
        str(root) if root else None,
    ]
    return sha256_bytes(json.dumps([settings, states]).encode())
