"""The table of contents of a checkpoint: every tensor's chunks, every file's size and sha256, and its own digest.

The manifest is canonical JSON: its bytes follow from its content, so a single changed byte anywhere in it is found.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conf.errors import CheckpointError
from conf.safety.regular import read_regular

FORMAT = 1
MANIFEST_FILE = "manifest.json"
STATE_FILE = "state.json"


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
        body = document["manifest"]
        whole = _canonical(document) == raw and document["sha256"] == _digest(body)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not a manifest ({error})") from error
    if not whole:
        raise CheckpointError(f"{path}: does not match the digest it carries; it was changed after it was written")
    if body["format"] != FORMAT:
        raise CheckpointError(f"{path}: format {body['format']}; this version reads format {FORMAT}")
    return _decode(body, path)


def _decode(body: dict[str, Any], path: Path) -> Manifest:
    files = {name: FileEntry(size=f["size"], sha256=f["sha256"]) for name, f in body["files"].items()}
    for name in files:
        # A manifest from elsewhere must not make us read outside its directory.
        if name != Path(name).name or name in ("", ".", ".."):
            raise CheckpointError(f"{path}: file name {name!r} leaves the checkpoint's directory")
    tensors = {
        key: TensorEntry(
            shape=tuple(entry["shape"]),
            dtype=entry["dtype"],
            dims=None if entry["dims"] is None else tuple(entry["dims"]),
            chunks=tuple(
                Chunk(file=c["file"], offsets=tuple(c["offsets"]), shape=tuple(c["shape"])) for c in entry["chunks"]
            ),
        )
        for key, entry in body["tensors"].items()
    }
    unlisted = {c.file for entry in tensors.values() for c in entry.chunks} - set(files)
    if unlisted or STATE_FILE not in files:
        raise CheckpointError(f"{path}: no digest for {sorted(unlisted) or STATE_FILE}")
    return Manifest(step=body["step"], tensors=tensors, files=files)


def _encode_tensor(entry: TensorEntry) -> dict[str, Any]:
    chunks = [{"file": c.file, "offsets": list(c.offsets), "shape": list(c.shape)} for c in entry.chunks]
    dims = None if entry.dims is None else list(entry.dims)
    return {"shape": list(entry.shape), "dtype": entry.dtype, "dims": dims, "chunks": chunks}


def _canonical(document: object) -> bytes:
    return (json.dumps(document, sort_keys=True, indent=1) + "\n").encode("ascii")


def _digest(body: object) -> str:
    return hashlib.sha256(_canonical(body)).hexdigest()
