"""Tokenised shards on disk: written atomically, checked when opened, read through memory maps.

A directory holds `index.json`, `tokenizer.model` and for each shard `NAME.tokens` (uint16 or uint32, little-endian),
`NAME.offsets` (int64, documents + 1) and `NAME.json`, which is written last: a shard without it is not finished.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from conf.errors import DataError
from data.files import sha256_bytes, sha256_file, write_atomic
from data.sources.finite import Split

FORMAT = 1
INDEX_NAME = "index.json"
TOKENIZER_NAME = "tokenizer.model"
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


def token_dtype(pieces: int) -> Literal["uint16", "uint32"]:
    """Smallest of the two token types that holds every piece (sentinels never occur in shards)."""
    return "uint16" if pieces <= 1 << 16 else "uint32"


def write_shard(
    folder: Path, name: str, split: Split, documents: Sequence[Sequence[int]], *, pieces: int, text: Sequence[str]
) -> ShardInfo:
    """Write one shard of tokenised `documents` made from `text`; the last file renamed into place commits it."""
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
    )
    write_atomic(folder / f"{name}.tokens", token_bytes)
    write_atomic(folder / f"{name}.offsets", offset_bytes)
    write_atomic(folder / f"{name}.json", _to_json(info))
    return info


def text_sha256(documents: Sequence[str]) -> str:
    """Checksum of a sequence of documents; where one ends and the next begins matters."""
    return sha256_bytes("".join(f"{len(document)}:{document}" for document in documents).encode())


def finished_shard(folder: Path, name: str, *, text: str) -> ShardInfo | None:
    """The shard `name` if it was finished before from documents with checksum `text` and is still whole."""
    path = folder / f"{name}.json"
    if not path.is_file():
        return None
    try:
        info = _from_json(ShardInfo, path)
        check_shard(folder, info, token_bytes=_token_bytes(folder, info), checksums=True)
    except DataError:
        return None  # it is written again
    return info if info.text_sha256 == text else None


def write_index(folder: Path, index: ShardIndex, model: bytes) -> None:
    """Commit a finished directory."""
    write_atomic(folder / TOKENIZER_NAME, model)
    write_atomic(folder / INDEX_NAME, _to_json(index))


def read_index(folder: Path) -> ShardIndex:
    """The index of a directory of shards. Raises DataError when it is not one, or of another format."""
    path = folder / INDEX_NAME
    if not path.is_file():
        found = f"holds {len(list(folder.iterdir()))} files but" if folder.is_dir() else "does not exist, so"
        raise DataError(f"{folder}: {found} there is no {INDEX_NAME}; finish `pointsman prepare` or give its directory")
    raw = _read_json(path)
    if raw.get("format") != FORMAT:
        raise DataError(
            f"{path}: format {raw.get('format')!r}; this version reads {FORMAT}; run `pointsman prepare` again"
        )
    raw["shards"] = tuple(_build(ShardInfo, shard, path) for shard in raw.get("shards", ()))
    raw["train_counts"] = tuple(raw.get("train_counts", ()))
    return _build(ShardIndex, raw, path)


def check_shard(folder: Path, info: ShardInfo, *, token_bytes: int, checksums: bool) -> None:
    """Raise DataError naming the file when a shard's files are missing, of another size or (on request) changed."""
    for suffix, size, digest in (
        ("tokens", info.tokens * token_bytes, info.tokens_sha256),
        ("offsets", (info.documents + 1) * 8, info.offsets_sha256),
    ):
        path = folder / f"{info.name}.{suffix}"
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes"
            raise DataError(
                f"{path}: {state}; needs {size} bytes; delete {info.name}.json and run `pointsman prepare` again"
            )
        if checksums and sha256_file(path) != digest:
            raise DataError(f"{path}: its sha256 is not the recorded one; delete {info.name}.json and prepare again")


class ShardReader:
    """One shard as memory maps; picklable by path."""

    def __init__(self, folder: Path, info: ShardInfo, dtype: str) -> None:
        self.info = info
        self.tokens: NDArray[Any] = _map(folder / f"{info.name}.tokens", f"<{np.dtype(dtype).str[1:]}", info.tokens)
        self.offsets: NDArray[np.int64] = _map(folder / f"{info.name}.offsets", "<i8", info.documents + 1)
        if self.offsets[0] != 0 or self.offsets[-1] != info.tokens:
            raise DataError(f"{folder / info.name}.offsets: does not cover {info.tokens} tokens; prepare it again")


def _map(path: Path, dtype: str, count: int) -> NDArray[Any]:
    if count == 0:
        return np.zeros(0, dtype=dtype)  # an empty file cannot be mapped
    return np.memmap(path, dtype=dtype, mode="r", shape=(count,))


def _token_bytes(folder: Path, info: ShardInfo) -> int:
    path = folder / f"{info.name}.tokens"
    if not path.is_file():
        raise DataError(f"{path}: is missing")
    return path.stat().st_size // info.tokens if info.tokens else 2


def _to_json(record: Any) -> bytes:
    return (json.dumps(asdict(record)) + "\n").encode()


def _from_json(kind: type[_Record], path: Path) -> _Record:
    return _build(kind, _read_json(path), path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); run `pointsman prepare` again") from error
    if not isinstance(raw, dict):
        raise DataError(f"{path}: is not a JSON object; run `pointsman prepare` again")
    return raw


def _build(kind: type[_Record], raw: dict[str, Any], path: Path) -> _Record:
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if set(raw) != names:
        raise DataError(f"{path}: fields differ by {sorted(names ^ set(raw))}; run `pointsman prepare` again")
    return kind(**raw)
