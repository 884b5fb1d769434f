"""Tensors of a Hugging Face folder: found, checked and read one at a time; and written, in shards above a size.

Nothing in a folder is trusted: an index may name only files of the folder, pickled files are read weights-only, and
code that a folder carries is never looked at.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from conf.errors import CheckpointError

SAFE, SAFE_INDEX = "model.safetensors", "model.safetensors.index.json"
BIN, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
FLOATS = (torch.float32, torch.bfloat16, torch.float16)  # fp32 holds every value of each of them
_SAFE_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_REFUSAL = "WeightsUnpickler error"  # begins the line with what torch refuses, below advice to execute it nonetheless
_CHECKSUM = "sha256"  # in the metadata of a file that carries its own
SHARD_BYTES = 5_000_000_000  # as transformers' default


class TensorFolder:
    """Names, shapes and values of the tensors of a checkpoint folder, whatever files they lie in."""

    def __init__(self, folder: Path) -> None:
        """Find the files and list their tensors. Raises CheckpointError naming the file that is missing or wrong."""
        self.folder = folder
        self.kind, self._listed = _locate(folder)
        self._open: dict[str, _TensorFile] = {}
        self._aliases: dict[str, str] = {}
        self._where: dict[str, str] = {}
        for file, promised in self._listed.items():
            held = self._file(file).names()
            if promised is not None and (missing := sorted(promised - held)):
                raise CheckpointError(f"{folder / file}: lacks {_some(missing)}, which the index says it holds")
            for name in held:
                if name in self._where:
                    raise CheckpointError(
                        f"{folder}: tensor {name} is in {self._where[name]} and in {file}; one of them must go"
                    )
                self._where[name] = file
        for file in self._listed:  # safetensors' save_model keeps one of the names of a tensor and notes the others
            for name, kept in self._file(file).metadata().items():
                if kept in self._where and name not in self._where:
                    self.also_name(name, kept)

    def also_name(self, name: str, kept: str) -> None:
        """Let a tensor that is there be found by another name as well."""
        self._aliases[name] = kept

    @property
    def names(self) -> frozenset[str]:
        """Every tensor of every file, by all its names."""
        return frozenset(self._where) | frozenset(self._aliases)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading its values."""
        name = self._aliases.get(name, name)
        return self._file(self._where[name]).shape(name)

    def dtypes(self) -> frozenset[str]:
        """Types the weights are stored in, such as "bfloat16"."""
        return frozenset(str(self._file(file).dtype(name)).removeprefix("torch.") for name, file in self._where.items())

    def read(self, name: str) -> Tensor:
        """A tensor on the CPU, as stored. Raises CheckpointError for a type that holds no plain weights, or NaN."""
        name = self._aliases.get(name, name)
        file = self._where[name]
        value = self._file(file).read(name)
        if value.dtype not in FLOATS or value.layout != torch.strided or value.is_meta:
            form = "without values" if value.is_meta else str(value.layout).removeprefix("torch.")
            raise CheckpointError(
                f"{self.folder / file}: {name} is {value.dtype}, {form}; needs float32, bfloat16 or float16 weights, "
                "written out (a quantised checkpoint must be saved unquantised first)"
            )
        if bad := int((~value.isfinite()).sum()):
            raise CheckpointError(
                f"{self.folder / file}: {bad} of {value.numel()} values of {name} are NaN or infinite; the checkpoint "
                "is damaged or its training diverged; take another one"
            )
        return value

    def _file(self, name: str) -> _TensorFile:
        if name not in self._open:
            self._open[name] = (
                _SafeFile(self.folder / name) if self.kind == "safetensors" else _BinFile(self.folder / name)
            )
        return self._open[name]


def _locate(folder: Path) -> tuple[str, dict[str, frozenset[str] | None]]:
    """("safetensors" or "bin", file -> tensors its index promises; None: no index), in the library's own order."""
    if not os.path.isdir(folder):
        raise CheckpointError(
            f"{folder}: is not a folder; give one with {SAFE} and config.json in it, or org/name of the hub"
        )
    for whole, index, kind in ((SAFE, SAFE_INDEX, "safetensors"), (BIN, BIN_INDEX, "bin")):
        if (folder / whole).exists():
            if not (folder / whole).is_file():
                raise CheckpointError(f"{folder / whole}: is not a file")
            return kind, {whole: None}
        if (folder / index).exists():
            return kind, _read_index(folder, index)
    other = sorted(path.name for path in folder.iterdir() if path.suffix in (".msgpack", ".h5", ".ckpt"))
    hint = f"; {', '.join(other)} is of another framework: save it with transformers first" if other else ""
    raise CheckpointError(f"{folder}: has none of {SAFE}, {SAFE_INDEX}, {BIN}, {BIN_INDEX}{hint}")


def _read_index(folder: Path, name: str) -> dict[str, frozenset[str] | None]:
    path = folder / name
    document = read_json(path)
    weights = document.get("weight_map")
    if not isinstance(weights, dict) or not all(isinstance(file, str) for file in weights.values()) or not weights:
        raise CheckpointError(f'{path}: needs "weight_map", a table of tensor names and the files they are in')
    files: dict[str, set[str]] = {}
    for tensor, file in weights.items():
        if file != Path(file).name or "\\" in file or file in ("", ".", ".."):
            raise CheckpointError(f"{path}: {tensor} is said to be in {file!r}, outside the folder; nothing was read")
        files.setdefault(file, set()).add(tensor)
    if missing := sorted(file for file in files if not os.path.isfile(folder / file)):
        raise CheckpointError(f"{path}: {len(missing)} of {len(files)} shards are missing: {_some(missing)}")
    return {file: frozenset(tensors) for file, tensors in sorted(files.items())}


def read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file. Raises CheckpointError, also for a key that is given twice."""

    def once(items: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in items]
        if twice := sorted({key for key in keys if keys.count(key) > 1} if len(set(keys)) < len(keys) else ()):
            raise ValueError(f"{_some(twice)} given twice")
        return dict(items)

    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise CheckpointError(f"{path}: cannot be read as JSON (not a file)")
    try:
        document = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=once)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; give a folder as transformers saves them") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path}: needs a JSON object, got a {type(document).__name__}")
    return document


class _TensorFile(ABC):
    """One file of tensors."""

    def metadata(self) -> dict[str, str]:
        """Texts that the writer left beside the tensors."""
        return {}

    @abstractmethod
    def names(self) -> frozenset[str]:
        """Every tensor of the file."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """Without reading the values."""

    @abstractmethod
    def dtype(self, name: str) -> torch.dtype | str:
        """A name where torch has no such type."""

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """The tensor as stored."""


class _SafeFile(_TensorFile):
    """A safetensors file; its header is read, its values are mapped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: is not a whole safetensors file ({error})") from error
        self._names = frozenset(self._file.keys())

    def metadata(self) -> dict[str, str]:
        return self._file.metadata() or {}

    def names(self) -> frozenset[str]:
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        short = self._file.get_slice(name).get_dtype()
        return _SAFE_TYPES.get(short, str(short))

    def read(self, name: str) -> Tensor:
        try:
            return self._file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self._path}: {name}: {error}") from error


def write_kept(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """One file that carries its own checksum, for `read_kept`."""
    whole = {name: value.contiguous() for name, value in tensors.items()}
    save_file(whole, path, metadata={"format": "pt", _CHECKSUM: _digest(whole)})


def read_kept(path: Path) -> dict[str, Tensor]:
    """What `write_kept` wrote. Raises CheckpointError if a byte of it is another."""
    file = _SafeFile(path)
    tensors = {name: file.read(name) for name in sorted(file.names())}
    if file.metadata().get(_CHECKSUM, _digest(tensors)) != _digest(tensors):  # older releases wrote none
        raise CheckpointError(f"{path}: was changed after it was written; restore it from a copy, or remove it")
    return tensors


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class _BinFile(_TensorFile):
    """A pickled file of PyTorch, read weights-only: anything but tensors in it is refused before it could run."""

    def __init__(self, path: Path) -> None:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged pickle fails in whatever way its bytes say
            lines = str(error).splitlines() or [type(error).__name__]
            reason = next((line.strip() for line in lines if _REFUSAL in line), lines[0])
            raise CheckpointError(
                f"{path}: cannot be read as weights alone ({reason}); it is cut short, or holds more than tensors, "
                "which is never executed. Save it as safetensors where you trust it"
            ) from error
        if not isinstance(content, dict) or not all(isinstance(k, str) for k in content):
            raise CheckpointError(f"{path}: needs a table of tensors by name, got a {type(content).__name__}")
        if odd := sorted(name for name, value in content.items() if not isinstance(value, Tensor)):
            raise CheckpointError(f"{path}: {_some(odd)} are no tensors")
        self._tensors: Mapping[str, Tensor] = content

    def names(self) -> frozenset[str]:
        return frozenset(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self._tensors[name].dtype

    def read(self, name: str) -> Tensor:
        return self._tensors[name].detach()


def write_tensors(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], Tensor],
    *,
    dtype: torch.dtype,
    shard_bytes: int = SHARD_BYTES,
) -> list[str]:
    """Write the tensors of `shapes`, in its order, as safetensors; the names of the files.

    One file while they fit `shard_bytes`, else numbered shards with an index. At most one shard is in memory.
    """
    shards = _shards({name: math.prod(shape) * dtype.itemsize for name, shape in shapes.items()}, shard_bytes)
    if len(shards) == 1:
        names = [SAFE]
    else:
        names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    weight_map: dict[str, str] = {}
    total = 0
    for file, shard in zip(names, shards, strict=True):
        # A copy each: safetensors refuses tensors that share memory, as experts sliced from one bank would.
        tensors = {name: read(name).to(dtype, copy=True).contiguous() for name in shard}
        for name, value in tensors.items():
            assert tuple(value.shape) == shapes[name], f"{name}: {tuple(value.shape)} instead of {shapes[name]}"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        total += sum(value.nbytes for value in tensors.values())
        weight_map |= dict.fromkeys(shard, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / SAFE_INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        names = [*names, SAFE_INDEX]
    return names


def _shards(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Names in order, cut so that each part holds at most `limit` bytes (or one tensor)."""
    parts: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if parts[-1] and filled + size > limit:
            parts.append([])
            filled = 0
        parts[-1].append(name)
        filled += size
    return parts


def _some(names: Iterable[str], count: int = 5) -> str:
    """The first few names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - count} more" if len(listed) > count else ""
    return ", ".join(listed[:count]) + more
