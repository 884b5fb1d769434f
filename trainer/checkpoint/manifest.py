"""The table of contents of a checkpoint: every tensor's chunks, every file's size and sha256, and its own digest.

The manifest is canonical JSON: its bytes follow from its content, so a single changed byte anywhere in it is found.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conf.errors import CheckpointError
from conf.safety.regular import read_regular
from trainer.checkpoint.tiling import tiling_problem

FORMAT = 1
MANIFEST_FILE = "manifest.json"
STATE_FILE = "state.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LIMIT = 1 << 62  # of sizes and offsets
_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "uint8": 1, "bool": 1}


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """A rectangle of a logical tensor and the file that holds it, there under the tensor's key."""

    file: str
    offsets: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorEntry:
    """One logical tensor: independent of the layout it was saved at."""

    shape: tuple[int, ...]
    dtype: str  # torch's name without the "torch." prefix
    dims: tuple[int, ...] | None  # dims of the parameter that a factored moment keeps; None: all
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """What a file must be."""

    size: int  # bytes
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """Everything a checkpoint directory holds."""

    step: int
    tensors: Mapping[str, TensorEntry]  # by "kind/parameter name"
    files: Mapping[str, FileEntry]  # by name within the directory, all but the manifest itself

    def encode(self) -> bytes:
        """Canonical bytes, with the digest of the rest as their last field."""
        body = {
            "format": FORMAT,
            "step": self.step,
            "files": {name: {"size": f.size, "sha256": f.sha256} for name, f in self.files.items()},
            "tensors": {key: _encode_tensor(entry) for key, entry in self.tensors.items()},
        }
        return _canonical({"manifest": body, "sha256": _digest(body)})


def tensor_key(kind: str, name: str) -> str:
    """Key of a logical state tensor in the manifest and in the safetensors files."""
    return f"{kind}/{name}"


def split_key(key: str) -> tuple[str, str]:
    """(kind, name) of a key."""
    kind, name = key.split("/", 1)
    return kind, name


def load_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of a checkpoint. Raises CheckpointError naming the file and what is wrong."""
    path = folder / MANIFEST_FILE
    try:
        raw = read_regular(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); the checkpoint is not complete") from error
    try:
        document = json.loads(raw)
        whole = _canonical(document) == raw and document["sha256"] == _digest(document["manifest"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not a manifest ({error})") from error
    if not whole:
        raise CheckpointError(f"{path}: does not match the digest it carries; it was changed after it was written")
    body = document["manifest"]
    if isinstance(body, dict) and type(body.get("format")) is int and body["format"] != FORMAT:
        raise CheckpointError(f"{path}: format {body['format']}; this version reads format {FORMAT}")
    try:
        return _decode(body)
    except _Malformed as error:
        raise CheckpointError(f"{path}: {error}; its digest is right, so it was made by something else") from None


class _Malformed(Exception):
    """A manifest whose digest is right, and which nonetheless says something that no checkpoint has."""

    def __init__(self, where: str, got: object, needs: str) -> None:
        shown = repr(got)
        super().__init__(f"{where} is {shown if len(shown) <= 60 else f'{shown[:60]}..'}; needs {needs}")


def _decode(body: Any) -> Manifest:
    """Checks every key: a manifest from elsewhere must not make us read outside its directory, or fail later."""
    given = _record("it", body, ("format", "step", "files", "tensors"))
    if type(given["format"]) is not int:
        raise _Malformed("format", given["format"], "a whole number")
    files = {name: _decode_file(name, f) for name, f in _table("files", given["files"]).items()}
    tensors = {key: _decode_tensor(key, t, files) for key, t in _table("tensors", given["tensors"]).items()}
    if STATE_FILE not in files:
        raise _Malformed("files", sorted(files), f"a digest for {STATE_FILE}")
    held = Counter[str]()
    for tensor in tensors.values():
        for chunk in tensor.chunks:
            held[chunk.file] += math.prod(chunk.shape) * _BYTES[tensor.dtype]
    if small := [name for name, size in held.items() if size > files[name].size]:
        raise _Malformed(f"files.{small[0]}.size", files[small[0]].size, f"room for the {held[small[0]]} bytes in it")
    return Manifest(step=_count("step", given["step"]), tensors=tensors, files=files)


def _decode_file(name: str, value: Any) -> FileEntry:
    where = f"files.{name}"
    if name != Path(name).name or name in ("", ".", "..", MANIFEST_FILE) or "\0" in name:
        raise _Malformed(where, name, "the name of a file that does not leave the checkpoint's directory")
    given = _record(where, value, ("size", "sha256"))
    if not isinstance(given["sha256"], str) or not _SHA256.fullmatch(given["sha256"]):
        raise _Malformed(f"{where}.sha256", given["sha256"], "64 hexadecimal digits")
    return FileEntry(size=_count(f"{where}.size", given["size"]), sha256=given["sha256"])


def _decode_tensor(key: str, value: Any, files: Mapping[str, FileEntry]) -> TensorEntry:
    where = f"tensors.{key}"
    if not all(key.partition("/")):
        raise _Malformed(where, key, "a key of the form kind/name")
    given = _record(where, value, ("shape", "dtype", "dims", "chunks"))
    shape, dtype = _counts(f"{where}.shape", given["shape"]), given["dtype"]
    if not isinstance(dtype, str) or dtype not in _BYTES:
        raise _Malformed(f"{where}.dtype", dtype, f"one of {', '.join(_BYTES)}")
    dims = None if given["dims"] is None else _counts(f"{where}.dims", given["dims"], len(shape))
    if dims is not None and len(set(dims)) < len(dims):
        raise _Malformed(f"{where}.dims", dims, "different dims")
    if not isinstance(given["chunks"], list):
        raise _Malformed(f"{where}.chunks", given["chunks"], "a list")
    chunks = tuple(_decode_chunk(f"{where}.chunks", c, len(shape), files) for c in given["chunks"])
    if problem := tiling_problem(shape, [(chunk.offsets, chunk.shape) for chunk in chunks]):
        raise _Malformed(f"{where}.chunks", f"{len(chunks)} of them", f"each part of the tensor once ({problem})")
    return TensorEntry(shape=shape, dtype=dtype, dims=dims, chunks=chunks)


def _decode_chunk(where: str, value: Any, dims: int, files: Mapping[str, FileEntry]) -> Chunk:
    given = _record(where, value, ("file", "offsets", "shape"))
    if not isinstance(given["file"], str) or given["file"] not in files:
        raise _Malformed(f"{where}.file", given["file"], "a file with a digest")
    offsets, shape = (_counts(f"{where}.{name}", given[name], dims) for name in ("offsets", "shape"))
    return Chunk(file=given["file"], offsets=offsets, shape=shape)


def _record(where: str, value: Any, keys: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict) or value.keys() != set(keys):
        raise _Malformed(where, value, f"the keys {', '.join(keys)}")
    return value


def _table(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Malformed(where, value, "a table by name")
    return value


def _count(where: str, value: Any) -> int:
    if type(value) is not int or not 0 <= value < _LIMIT:
        raise _Malformed(where, value, "a whole number, at least 0")
    return value


def _counts(where: str, value: Any, length: int | None = None) -> tuple[int, ...]:
    if not isinstance(value, list) or (length is not None and len(value) != length):
        raise _Malformed(where, value, f"a list of {'' if length is None else f'{length} '}whole numbers")
    return tuple(_count(where, each) for each in value)


def _encode_tensor(entry: TensorEntry) -> dict[str, Any]:
    chunks = [{"file": c.file, "offsets": list(c.offsets), "shape": list(c.shape)} for c in entry.chunks]
    dims = None if entry.dims is None else list(entry.dims)
    return {"shape": list(entry.shape), "dtype": entry.dtype, "dims": dims, "chunks": chunks}


def _canonical(document: object) -> bytes:
    return (json.dumps(document, sort_keys=True, indent=1) + "\n").encode("ascii")


def _digest(body: object) -> str:
    return hashlib.sha256(_canonical(body)).hexdigest()
