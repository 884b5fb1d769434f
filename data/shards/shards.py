"""Tokenised shards on disk: written atomically, checked when opened, read through memory maps.

A directory holds `index.json`, `tokenizer.model` and for each shard `NAME.tokens` (uint16 or uint32, little-endian),
`NAME.offsets` (int64, documents + 1) and `NAME.json`, which is written last: a shard without it is not finished.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from conf.errors import DataError
from conf.safety.regular import read_regular
from conf.sources import SHARDS_INDEX
from data.files import sha256_bytes, sha256_file, write_atomic
from data.sources.finite import SPLITS, Split

FORMAT = 3
_READABLE = (1, 2, 3)  # 1: without a checksum of the index itself; 1, 2: characters were not counted
INDEX_NAME = SHARDS_INDEX
OFFSETS = "<i8"
TOKENIZER_NAME = "tokenizer.model"
_CHECKSUM = "sha256"  # of the other fields of the index
SAMPLE = 8  # characters that are named where some are unknown
_LIMIT = 1 << 62  # of numbers
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_AGAIN = "restore it, or run `pointsman prepare` again"
_Record = TypeVar("_Record")


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardInfo:
    """One shard; `text_sha256` says which documents it was made from, so that a restart keeps what is finished."""

    name: str
    split: Split
    documents: int
    tokens: int
    text_bytes: int
    text_sha256: str
    tokens_sha256: str
    offsets_sha256: str
    characters: int  # of the text
    unknown: int  # of these that the tokenizer does not know
    unknown_sample: str  # the most frequent of them


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardIndex:
    """What a directory of shards holds. `train_counts` are occurrences of each piece in the training split."""

    format: int
    tokenizer: str  # sha256 of the model file
    source: str  # fingerprint of the documents
    pieces: int
    dtype: Literal["uint16", "uint32"]
    shards: tuple[ShardInfo, ...]
    train_counts: tuple[int, ...]

    @property
    def fingerprint(self) -> str:
        """sha256 over the checksums of every shard in order: equal for equal token streams."""
        return sha256_bytes("\n".join(f"{s.split} {s.tokens_sha256} {s.offsets_sha256}" for s in self.shards).encode())


class ShardFile(NamedTuple):
    """A file of a shard as it was written."""

    path: Path
    dtype: str
    items: int
    sha256: str
    covers: int  # of offsets: the tokens they divide

    @property
    def size(self) -> int:
        """Bytes."""
        return self.items * np.dtype(self.dtype).itemsize


def files_of(folder: Path, info: ShardInfo, dtype: str) -> tuple[ShardFile, ShardFile]:
    """The tokens and the offsets of a shard."""
    stem = folder / info.name
    return (
        ShardFile(Path(f"{stem}.tokens"), f"<{np.dtype(dtype).str[1:]}", info.tokens, info.tokens_sha256, info.tokens),
        ShardFile(Path(f"{stem}.offsets"), OFFSETS, info.documents + 1, info.offsets_sha256, info.tokens),
    )


def token_dtype(pieces: int) -> Literal["uint16", "uint32"]:
    """Smallest of the two token types that holds every piece (sentinels never occur in shards)."""
    return "uint16" if pieces <= 1 << 16 else "uint32"


def write_shard(
    folder: Path,
    name: str,
    split: Split,
    documents: Sequence[Sequence[int]],
    *,
    pieces: int,
    text: Sequence[str],
    unknown: Counter[str],
) -> ShardInfo:
    """Write one shard of tokenised `documents` made from `text`; the last file renamed into place commits it.

    `unknown`: the characters of `text` that the tokenizer does not know.
    """
    lengths = np.fromiter((len(document) for document in documents), dtype=np.int64, count=len(documents))
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
    tokens = np.empty(int(offsets[-1]), dtype=token_dtype(pieces))
    for start, document in zip(offsets[:-1], documents, strict=True):
        tokens[start : start + len(document)] = document
    token_bytes, offset_bytes = tokens.astype(tokens.dtype.newbyteorder("<")).tobytes(), offsets.astype("<i8").tobytes()
    info = ShardInfo(
        name=name,
        split=split,
        documents=len(documents),
        tokens=len(tokens),
        text_bytes=sum(len(document.encode()) for document in text),
        text_sha256=text_sha256(text),
        tokens_sha256=sha256_bytes(token_bytes),
        offsets_sha256=sha256_bytes(offset_bytes),
        characters=sum(len(document) for document in text),
        unknown=unknown.total(),
        unknown_sample="".join(character for character, _ in unknown.most_common(SAMPLE)),
    )
    write_atomic(folder / f"{name}.tokens", token_bytes)
    write_atomic(folder / f"{name}.offsets", offset_bytes)
    write_atomic(folder / f"{name}.json", _to_json(info))
    return info


def text_sha256(documents: Sequence[str]) -> str:
    """Checksum of a sequence of documents; where one ends and the next begins matters."""
    return sha256_bytes("".join(f"{len(document)}:{document}" for document in documents).encode())


def finished_shard(folder: Path, name: str, *, split: Split, text: str, dtype: str) -> ShardInfo | None:
    """The shard `name` if it was finished before from documents with checksum `text` and is still whole."""
    path = folder / f"{name}.json"
    if not path.is_file():
        return None
    try:
        info = _build(ShardInfo, _read_json(path), path)
        whole = all(sha256_file(file.path) == file.sha256 for file in files_of(folder, info, dtype))
    except (DataError, OSError):
        return None  # it is written again
    return info if whole and (info.name, info.split, info.text_sha256) == (name, split, text) else None


def write_index(folder: Path, index: ShardIndex, model: bytes) -> None:
    """Commit a finished directory."""
    write_atomic(folder / TOKENIZER_NAME, model)
    body = asdict(index)
    write_atomic(folder / INDEX_NAME, (json.dumps({**body, _CHECKSUM: _checksum(body)}) + "\n").encode())


def _checksum(body: dict[str, Any]) -> str:
    return sha256_bytes(json.dumps(body, sort_keys=True).encode())


def read_index(folder: Path) -> ShardIndex:
    """The index of a directory of shards. Raises DataError when it is not one, damaged, or of another format."""
    path = folder / INDEX_NAME
    if not path.is_file():
        found = f"holds {len(list(folder.iterdir()))} files but" if folder.is_dir() else "does not exist, so"
        raise DataError(f"{folder}: {found} there is no {INDEX_NAME}; finish `pointsman prepare` or give its directory")
    raw = _read_json(path)
    if raw.get("format") not in _READABLE:
        raise DataError(f"{path}: format {raw.get('format')!r}; this version reads {FORMAT}; {_AGAIN}")
    if raw["format"] != 1 and raw.pop(_CHECKSUM, None) != _checksum(raw):
        raise DataError(f"{path}: its content is not what was written; {_AGAIN}")
    shards, counts = raw.get("shards"), raw.get("train_counts")
    if not isinstance(shards, list) or not isinstance(counts, list) or raw.get("dtype") not in ("uint16", "uint32"):
        raise DataError(f"{path}: its shards, counts or dtype are of no known kind; {_AGAIN}")
    if raw["format"] < FORMAT:
        uncounted = {"characters": 0, "unknown": 0, "unknown_sample": ""}
        shards = [{**uncounted, **shard} if isinstance(shard, dict) else shard for shard in shards]
    raw["shards"] = tuple(_build(ShardInfo, shard, path) for shard in shards)
    raw["train_counts"] = tuple(counts)
    index = _build(ShardIndex, raw, path)
    _check_content(index, path)
    return index


def _check_content(index: ShardIndex, path: Path) -> None:
    """Its checksum says that it is as it was written, not by whom. Raises DataError."""
    counts = index.train_counts
    if len(counts) != index.pieces or not all(type(count) is int and 0 <= count < _LIMIT for count in counts):
        raise DataError(f"{path}: train_counts are not {index.pieces} whole numbers, one for each piece; {_AGAIN}")
    names = Counter(shard.name for shard in index.shards)
    for shard in index.shards:
        if not _NAME.fullmatch(shard.name) or names[shard.name] > 1:
            raise DataError(f"{path}: {shard.name!r} is no name of one shard beside it; {_AGAIN}")
        if shard.split not in SPLITS:
            raise DataError(f"{path}: {shard.name} is of split {shard.split!r}, not of {' or '.join(SPLITS)}; {_AGAIN}")


class ShardReader:
    """One shard as memory maps; picklable by path."""

    def __init__(self, folder: Path, info: ShardInfo, dtype: str) -> None:
        self.info = info
        tokens, offsets = files_of(folder, info, dtype)
        self.tokens: NDArray[Any] = _map(tokens)
        self.offsets: NDArray[np.int64] = _map(offsets)


def _map(file: ShardFile) -> NDArray[Any]:
    if file.items == 0:
        return np.zeros(0, dtype=file.dtype)  # an empty file cannot be mapped
    try:
        return np.memmap(file.path, dtype=file.dtype, mode="r", shape=(file.items,))
    except (OSError, ValueError) as error:  # it was whole when it was verified
        raise DataError(f"{file.path}: is gone or was cut meanwhile ({error}); start again") from error


def _to_json(record: Any) -> bytes:
    return (json.dumps(asdict(record)) + "\n").encode()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(read_regular(path))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read ({error}); {_AGAIN}") from error
    if not isinstance(raw, dict):
        raise DataError(f"{path}: is not a JSON object; {_AGAIN}")
    return raw


def _build(kind: type[_Record], raw: Any, path: Path) -> _Record:
    wanted = {field.name: field.type for field in fields(kind)}  # type: ignore[arg-type]
    found = set(raw) if isinstance(raw, dict) else set()
    if found != set(wanted):
        raise DataError(f"{path}: fields differ by {sorted(set(wanted) ^ found)}; {_AGAIN}")
    for name, annotation in wanted.items():
        if annotation in ("int", "str") and type(raw[name]).__name__ != annotation:
            raise DataError(f"{path}: {name} is {raw[name]!r}, not of type {annotation}; {_AGAIN}")
        if annotation == "int" and not 0 <= raw[name] < _LIMIT:
            raise DataError(f"{path}: {name} is {raw[name]}, not at least 0; {_AGAIN}")
    return kind(**raw)
