"""One pass over a finite source: counts, the documents' fingerprint, and the tokenizer trained on them; all cached."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from conf.errors import DataError
from conf.schema import DataConfig
from data.cache import cached
from data.files import sha256_bytes
from data.notice import Progress
from data.sources.finite import Document, FiniteSource, cache_folder
from data.sources.texts import BadRows, skipped_note
from data.text.tokenizer import Tokenizer
from data.text.train_tokenizer import TRAINER_VERSION, sample_lines, text_lines, train_tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class Scan:
    """What a source holds. Sizes are UTF-8 bytes."""

    fingerprint: str  # sha256 over (split, text) of every document in order
    train_fingerprint: str  # ... over the training split alone: what the tokenizer depends on
    train_documents: int
    validation_documents: int
    train_bytes: int
    validation_bytes: int
    train_lines: int  # that are not blank
    bad_rows: int  # skipped
    first_bad_row: str  # where it is and what is wrong with it


def scan_source(source: FiniteSource, data: DataConfig, *, progress: Progress) -> Scan:
    """Read every document once, or take the result of the last time if the signature is the same.

    Raises:
        DataError: there is no training document, or a file cannot be read.
    """

    def make() -> bytes:
        progress(f"reading {source.name} documents")
        scan = _scan(source, BadRows(data))
        if scan.train_documents == 0:
            skipped = f"; {skipped_note(scan.bad_rows, scan.first_bad_row)}" if scan.bad_rows else ""
            raise DataError(
                f"data={source.name}: no training document ({scan.validation_documents} in validation); give more text "
                f"in data.files, or lower data.validation_fraction={data.validation_fraction}{skipped}"
            )
        return json.dumps(asdict(scan)).encode()

    return Scan(**json.loads(cached(cache_folder(data) / "scans", source.signature, ".json", make)))


def _scan(source: FiniteSource, bad: BadRows) -> Scan:
    whole, train = hashlib.sha256(), hashlib.sha256()
    documents, sizes, lines = {"train": 0, "validation": 0}, {"train": 0, "validation": 0}, 0
    for split, text in source.documents(bad):
        content = _hashed(Document(split, text))
        whole.update(content)
        documents[split] += 1
        sizes[split] += len(text.encode())
        if split == "train":
            train.update(content)
            lines += sum(1 for _ in text_lines((text,)))
    return Scan(
        fingerprint=whole.hexdigest(),
        train_fingerprint=train.hexdigest(),
        train_documents=documents["train"],
        validation_documents=documents["validation"],
        train_bytes=sizes["train"],
        validation_bytes=sizes["validation"],
        train_lines=lines,
        bad_rows=bad.count,
        first_bad_row=bad.first,
    )


def _hashed(document: Document) -> bytes:
    """A document as it goes into the fingerprints."""
    content = document.text.encode()
    return f"{document.split}:{len(content)}:".encode() + content


def scanned_documents(source: FiniteSource, scan: Scan) -> Iterator[Document]:
    """The documents of `source` once more. Raises DataError at their end when they are not those that were scanned."""
    whole = hashlib.sha256()
    for document in source.documents():
        whole.update(_hashed(document))
        yield document
    if whole.hexdigest() != scan.fingerprint:
        raise DataError(
            f"data={source.name}: the text was changed while it was prepared, so nothing was made of it; start again "
            "when data.files are no longer written to, or give a copy of them"
        )


def tokenizer_for(source: FiniteSource, scan: Scan, data: DataConfig, *, progress: Progress) -> Tokenizer:
    """The tokenizer of `data.tokenizer`, or one trained on the training split and cached."""
    wanted = min(scan.train_lines, data.tokenizer_lines)

    def lines() -> Iterator[str]:
        progress(f"training a tokenizer of {data.tokenizer_vocab} pieces on {wanted} lines")
        train = (text for split, text in scanned_documents(source, scan) if split == "train")
        return sample_lines(text_lines(train), total=scan.train_lines, wanted=wanted)

    return tokenizer_of(scan.train_fingerprint, data, lines)


def tokenizer_of(text_fingerprint: str, data: DataConfig, lines: Callable[[], Iterator[str]]) -> Tokenizer:
    """The tokenizer of `data.tokenizer`, or the one trained on `lines` of this text with these settings and cached."""
    if data.tokenizer is not None:
        return Tokenizer.from_file(Path(data.tokenizer), sentinels=data.sentinels)
    taken = {"character_coverage": data.character_coverage, "byte_fallback": data.byte_fallback}
    settings = [TRAINER_VERSION, text_fingerprint, data.tokenizer_vocab, data.tokenizer_lines, taken]
    key = sha256_bytes(json.dumps(settings).encode())[:32]
    folder = cache_folder(data) / "tokenizers"
    model = cached(folder, key, ".model", lambda: train_tokenizer(lines(), pieces=data.tokenizer_vocab, **taken))
    return Tokenizer(model, sentinels=data.sentinels, origin=f"{folder}/{key}")
