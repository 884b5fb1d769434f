"""Reads any slice of any logical tensor of a checkpoint, whatever layout wrote it, after verifying its files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from conf.errors import CheckpointError, ConfigError
from parallel.engine.protocol import MASTER, STEP
from parallel.layers.sharding import Shard, shard_of, tagged_parameters
from parallel.mesh.axes import Mesh
from trainer.checkpoint.files import problem_of
from trainer.checkpoint.manifest import STATE_FILE, Chunk, TensorEntry, load_manifest, split_key, tensor_key
from trainer.checkpoint.pieces import kept


class CheckpointReader:
    """One committed checkpoint. A file's sha256 is compared before the first byte of it is used."""

    def __init__(self, path: Path) -> None:
        """Read manifest and state. Raises CheckpointError if either is damaged."""
        self.path = path
        self._manifest = load_manifest(path)
        self._files: dict[str, Any] = {}  # open safetensors files; their pages are mapped, not read
        self.state = self._read_state()

    def _read_state(self) -> dict[str, Any]:
        path = self._verified(STATE_FILE)
        try:
            state = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: cannot be read ({error}); its digest is right") from error
        if not isinstance(state, dict):
            raise CheckpointError(f"{path}: needs a JSON object, got a {type(state).__name__}")
        return state

    @property
    def step(self) -> int:
        """Optimizer steps taken when it was saved."""
        return self._manifest.step

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of state it holds: "master" and the moments' names."""
        return tuple(sorted({split_key(key)[0] for key in self._manifest.tensors}))

    def names(self, kind: str) -> tuple[str, ...]:
        """Parameters of which it holds this kind."""
        split = (split_key(key) for key in self._manifest.tensors)
        return tuple(sorted(name for k, name in split if k == kind))

    def shape(self, kind: str, name: str) -> tuple[int, ...]:
        """Logical shape of a state tensor."""
        return self._entry(kind, name).shape

    def read(self, kind: str, name: str, shard: Shard | None = None) -> Tensor:
        """A slice of a logical state tensor on CPU, as stored; the whole tensor if `shard` is None.

        `shard` is that of the *parameter*; a factored moment takes the part of it that it keeps. Reads only the
        chunks that meet the slice. Raises CheckpointError if there is no such tensor, the shapes differ or a file is
        damaged.
        """
        entry = self._entry(kind, name)
        if shard is None:
            shard = Shard(global_shape=entry.shape, offsets=(0,) * len(entry.shape), local_shape=entry.shape)
        elif entry.dims is not None:
            if max(entry.dims, default=0) >= len(shard.global_shape):
                raise CheckpointError(f"{self.path}: {kind} of {name} keeps dims {list(entry.dims)}, which it lacks")
            shard = kept(shard, entry.dims)
        if shard.global_shape != entry.shape:
            raise CheckpointError(
                f"{self.path}: {kind} of {name} has shape {list(entry.shape)}, "
                f"the model needs {list(shard.global_shape)}"
            )
        out = torch.empty(shard.local_shape, dtype=getattr(torch, entry.dtype))
        filled = sum(self._copy(tensor_key(kind, name), chunk, shard, out) for chunk in entry.chunks)
        if filled != out.numel():
            raise CheckpointError(f"{self.path}: the chunks of {kind} of {name} do not cover the slice")
        return out

    def for_engine(self, shards: Mapping[str, Shard]) -> Callable[[str, str], Tensor | None]:
        """What `Engine.load_state` asks: `read(name, kind)` of this rank's shards; None for what is not stored."""

        def read(name: str, kind: str) -> Tensor | None:
            if kind == STEP:
                return torch.tensor(float(self.step))
            if tensor_key(kind, name) not in self._manifest.tensors:
                return None
            return self.read(kind, name, shards[name])

        return read

    def check_names(self, shards: Mapping[str, Shard]) -> None:
        """Compare with a model's parameters. Raises CheckpointError listing all that is missing, unexpected or unlike.

        A parameter must have a master and, if any parameter has moments, a moment of its own.
        """
        stored = {kind: set(self.names(kind)) for kind in self.kinds}
        masters = stored.get(MASTER, set())
        moments = set().union(*(names for kind, names in stored.items() if kind != MASTER))
        problems = [f"missing: {name}" for name in sorted(set(shards) - masters)]
        problems += [f"missing: every moment of {name}" for name in sorted(set(shards) - moments) if moments]
        problems += [f"unexpected: {name}" for name in sorted((masters | moments) - set(shards))]
        for name in sorted(set(shards) & masters):
            if (shape := self.shape(MASTER, name)) != shards[name].global_shape:
                problems.append(f"{name}: shape {list(shape)}, the model needs {list(shards[name].global_shape)}")
        if problems:
            listed = "\n  ".join(problems)
            raise CheckpointError(f"{self.path} does not fit the model:\n  {listed}")

    def _entry(self, kind: str, name: str) -> TensorEntry:
        entry = self._manifest.tensors.get(tensor_key(kind, name))
        if entry is None:
            raise CheckpointError(f"{self.path} holds no {kind} of {name}; kinds: {', '.join(self.kinds)}")
        return entry

    def _copy(self, key: str, chunk: Chunk, shard: Shard, out: Tensor) -> int:
        """Copy what chunk and slice share into `out`; the number of values."""
        source, target = [], []
        for start, size, wanted, length in zip(
            chunk.offsets, chunk.shape, shard.offsets, shard.local_shape, strict=True
        ):
            low, high = max(start, wanted), min(start + size, wanted + length)
            if low >= high:
                return 0
            source.append(slice(low - start, high - start))
            target.append(slice(low - wanted, high - wanted))
        file = self._open(chunk.file)
        try:
            # A scalar has no slices; safetensors gives it whole.
            part = file.get_slice(key)[tuple(source)] if source else file.get_tensor(key)
        except (SafetensorError, ValueError, IndexError) as error:
            raise CheckpointError(f"{self.path / chunk.file}: {key}: {error}") from error
        view = out[tuple(target)]
        if part.dtype != out.dtype or part.shape != view.shape:
            raise CheckpointError(f"{self.path / chunk.file}: {key} is not what the manifest says")
        view.copy_(part)
        return part.numel()

    def _open(self, name: str) -> Any:
        if name not in self._files:
            path = self._verified(name)
            try:
                self._files[name] = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{path}: {error}") from error
        return self._files[name]

    def _verified(self, name: str) -> Path:
        problem = problem_of(self.path / name, self._manifest.files[name])
        if problem is not None:
            raise CheckpointError(f"{self.path}: {problem}; the file was changed after it was written")
        return self.path / name


@torch.no_grad()
def load_weights(module: nn.Module, reader: CheckpointReader, mesh: Mesh) -> None:
    """Copy master weights into a module's parameters, cast to their dtype: for evaluation without an engine."""
    for name, parameter, _ in tagged_parameters(module):
        parameter.copy_(reader.read(MASTER, name, shard_of(parameter, mesh)))


def check_fingerprints(saved: Mapping[str, str], current: Mapping[str, str], *, allow: bool = False) -> list[str]:
    """What tokenizer or data changed since the checkpoint, one line each with both fingerprints.

    Raises ConfigError with these lines unless the caller allows the change.
    """
    changed = [
        f"{name}: the checkpoint has {saved.get(name, 'none')}, this run has {current.get(name, 'none')}"
        for name in sorted(set(saved) | set(current))
        if saved.get(name) != current.get(name)
    ]
    if changed and not allow:
        raise ConfigError(
            "data", got="; ".join(changed), needs="the tokenizer and data the checkpoint was trained on",
            hint="the same files as before, or train.allow_data_change=true to go on with these",
        )  # fmt: skip
    return changed
