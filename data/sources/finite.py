"""Finite sources: documents in a fixed order, each in the training or the validation split, and a cheap signature.

The signature changes when the files or the settings that make documents of them change (paths, sizes, times); the
fingerprint, made by reading everything once, is a checksum of the documents themselves.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from conf.reading.paths import held_out_files, user_path
from conf.schema import DataConfig
from conf.sources import SOURCES
from data.files import sha256_bytes
from data.sources.local import local_documents
from data.sources.texts import BadRows, Texts, file_states

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")
DOCUMENTS_VERSION = 2  # raise it when the same files would give other documents
_HASH_RANGE = 1 << 64


class Document(NamedTuple):
    """A piece of text and the split it belongs to."""

    split: Split
    text: str


def cache_folder(data: DataConfig) -> Path:
    """`data.cache_dir` with ~ expanded."""
    return user_path(data.cache_dir)


def is_validation(text: str, fraction: float) -> bool:
    """Whether a document is held out: its hash falls into the first `fraction` of the range, whatever its place."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * _HASH_RANGE


class FiniteSource:
    """The texts of `data.source` and of `data.validation_files` as documents, again and again in the same order."""

    def __init__(self, data: DataConfig) -> None:
        """Raises DataError or ConfigError when files are missing."""
        self.name = data.source
        self._data = data
        self._texts = source_texts(data)
        self._held_out = held_out_files(data.files, data.validation_files)
        settings = [DOCUMENTS_VERSION, data.source, data.validation_fraction, data.text_field, data.bad_rows]
        state = json.dumps([settings, self._texts.state, file_states(self._held_out)])
        self.signature = sha256_bytes(state.encode())

    def documents(self, bad: BadRows | None = None) -> Iterator[Document]:
        """Each text with its split; blank ones are dropped. Bad rows are refused, or skipped and counted in `bad`."""
        data, bad = self._data, bad or BadRows(self._data)
        for text in bad.good(self._texts.read()):
            if text.strip():
                by_hash = not self._held_out and is_validation(text, data.validation_fraction)
                yield Document("validation" if by_hash else "train", text)
        for text in bad.good(local_documents(self._held_out, field=data.text_field)):
            if text.strip():
                yield Document("validation", text)


def source_texts(data: DataConfig) -> Texts:
    """What the module of the source's row gives."""
    module = SOURCES[data.source].module
    assert module is not None, f"{data.source} has no documents"
    texts = importlib.import_module(module).texts(data)
    assert isinstance(texts, Texts), f"texts of {module} gives {texts!r}"
    return texts
