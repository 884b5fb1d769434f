"""Finite sources: documents in a fixed order, each in the training or the validation split, and a cheap signature.

The signature changes when the files or the settings that make documents of them change (paths, sizes, times); the
fingerprint, made by reading everything once, is a checksum of the documents themselves.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from conf.schema import DataConfig
from conf.sources import SOURCES
from data.files import expand_globs, sha256_bytes
from data.sources.local import local_documents
from data.sources.texts import Texts, file_states

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
    """The texts of `data.source` and of `data.validation_files`, in splits. Raises DataError when files are missing."""
    texts = source_texts(data)
    held_out = expand_globs(data.validation_files, field="data.validation_files") if data.validation_files else ()

    def documents() -> Iterator[Document]:
        for text in texts.read():
            if text.strip():  # blank documents are dropped
                by_hash = not held_out and is_validation(text, data.validation_fraction)
                yield Document("validation" if by_hash else "train", text)
        for text in local_documents(held_out, field=data.text_field, cache_dir=cache_folder(data)):
            if text.strip():
                yield Document("validation", text)

    settings = [DOCUMENTS_VERSION, data.source, data.validation_fraction, data.text_field]
    state = json.dumps([settings, texts.state, file_states(held_out)])
    return FiniteSource(name=data.source, signature=sha256_bytes(state.encode()), documents=documents)


def source_texts(data: DataConfig) -> Texts:
    """What the module of the source's row gives."""
    module = SOURCES[data.source].module
    assert module is not None, f"{data.source} has no documents"
    texts = importlib.import_module(module).texts(data)
    assert isinstance(texts, Texts), f"texts of {module} gives {texts!r}"
    return texts
