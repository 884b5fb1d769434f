"""One rank's part of a checkpoint: staged copies of its pieces, and the check that all pieces fit together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from conf.errors import CheckpointError
from parallel.engine.protocol import StateTensor
from parallel.layers.sharding import Shard
from trainer.checkpoint.manifest import tensor_key
from trainer.checkpoint.tiling import tiling_problem


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One rectangle of one logical state tensor in this rank's memory."""

    key: str
    value: Tensor  # on CPU, contiguous, owned by the save
    shard: Shard
    dims: tuple[int, ...] | None

    @cached_property
    def digest(self) -> str:
        """sha256 of the values."""
        return hashlib.sha256(self.value.reshape(-1).view(torch.uint8).numpy().data).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class PieceNote:
    """What other ranks are told about a piece."""

    shape: tuple[int, ...]  # of the logical tensor
    offsets: tuple[int, ...]
    local_shape: tuple[int, ...]
    dtype: str
    dims: tuple[int, ...] | None
    digest: str


def note_of(piece: Piece) -> PieceNote:
    """Everything about a piece but its values."""
    return PieceNote(
        shape=piece.shard.global_shape, offsets=piece.shard.offsets, local_shape=piece.shard.local_shape,
        dtype=str(piece.value.dtype).removeprefix("torch."), dims=piece.dims, digest=piece.digest,
    )  # fmt: skip


def kept(shard: Shard, dims: tuple[int, ...] | None) -> Shard:
    """The shard of a state tensor that keeps only some dims of its parameter (None: all)."""
    if dims is None:
        return shard
    return Shard(
        global_shape=tuple(shard.global_shape[d] for d in dims),
        offsets=tuple(shard.offsets[d] for d in dims),
        local_shape=tuple(shard.local_shape[d] for d in dims),
    )


def stage(tensors: Iterable[StateTensor], shards: Mapping[str, Shard]) -> dict[str, Piece]:
    """Copy this rank's tensors to CPU memory, by key.

    Exhausts the iterator even when a tensor is wrong, since reading the state is collective. Raises CheckpointError
    for a name that is no parameter, a shape that is not the shard's, a key given twice, or values that are not finite:
    whoever resumed from those could only diverge again.
    """
    pieces: dict[str, Piece] = {}
    wrong: list[str] = []
    for tensor in tensors:
        key = tensor_key(tensor.kind, tensor.name)
        problem = _problem(tensor, shards, known=key in pieces)
        if problem is not None:
            wrong.append(f"{key}: {problem}")
            continue
        value = tensor.value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        if not torch.isfinite(value).all():
            wrong.append(f"{key}: some values are not finite; the run has diverged")
            continue
        pieces[key] = Piece(key=key, value=value, shard=kept(shards[tensor.name], tensor.dims), dims=tensor.dims)
    if wrong:
        raise CheckpointError("; ".join(wrong))
    return pieces


def _problem(tensor: StateTensor, shards: Mapping[str, Shard], *, known: bool) -> str | None:
    if known:
        return "given twice by one rank"
    if tensor.name not in shards:
        return "is the state of no parameter"
    needed = kept(shards[tensor.name], tensor.dims).local_shape
    if tuple(tensor.value.shape) != needed:
        return f"has shape {tuple(tensor.value.shape)} where this rank's shard has {needed}"
    return None


def check_pieces(notes: list[dict[str, PieceNote]]) -> None:
    """Refuse pieces of all ranks that do not tile every logical tensor exactly once.

    The same piece from several ranks (tensor ranks hold copies of norms) is fine when its values are the same. Raises
    CheckpointError listing what is wrong.
    """
    by_key: dict[str, dict[int, PieceNote]] = {}
    for rank, pieces in enumerate(notes):
        for key, note in pieces.items():
            by_key.setdefault(key, {})[rank] = note
    wrong = [f"{key}: {problem}" for key, found in by_key.items() if (problem := _tiling_problem(found)) is not None]
    if wrong:
        raise CheckpointError(f"the ranks' pieces do not make a whole: {_listed(wrong)}")


def _tiling_problem(found: dict[int, PieceNote]) -> str | None:
    distinct: dict[tuple[tuple[int, ...], tuple[int, ...]], tuple[int, PieceNote]] = {}
    for rank, note in found.items():
        first_rank, first = distinct.setdefault((note.offsets, note.local_shape), (rank, note))
        if (note.shape, note.dtype, note.dims) != (first.shape, first.dtype, first.dims):
            return f"ranks {first_rank} and {rank} disagree on its shape or dtype"
        if note.digest != first.digest:
            return f"ranks {first_rank} and {rank} hold different values for the same piece at {list(note.offsets)}"
    notes = [note for _, note in distinct.values()]
    described = {(note.shape, note.dtype, note.dims) for note in notes}
    if len(described) > 1:
        return f"ranks disagree on its shape or dtype: {sorted(str(d) for d in described)}"
    return tiling_problem(notes[0].shape, [(note.offsets, note.local_shape) for note in notes])


def _listed(problems: list[str], most: int = 8) -> str:
    more = f"; and {len(problems) - most} more" if len(problems) > most else ""
    return "; ".join(problems[:most]) + more
