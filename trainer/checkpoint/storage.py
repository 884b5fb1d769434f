"""Writes one rank's pieces with torch.distributed.checkpoint as safetensors files: no pickle on disk."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from conf.errors import CheckpointError
from parallel.mesh.axes import Axis
from parallel.mesh.collectives import fault_point
from trainer.checkpoint.manifest import Chunk, TensorEntry
from trainer.checkpoint.pieces import Piece, check_pieces, note_of

# The storage writer serialises a whole file in memory (twice its size), so a rank's pieces go to files of this size.
FILE_BYTES = 1 << 30

warnings.filterwarnings("ignore", message="torch.distributed is disabled")


def write_pieces(folder: Path, pieces: Mapping[str, Piece], axis: Axis) -> PieceWriter:
    """Collective over `axis`: check that all ranks' pieces make a whole, then write each piece once, flushed to disk.

    Raises CheckpointError on every rank when one fails, with what happened on which rank.
    """
    writer = PieceWriter(folder)
    try:
        save({}, storage_writer=writer, planner=PiecePlanner(pieces), process_group=axis.group,
             no_dist=axis.group is None)  # fmt: skip
    except CheckpointException as error:
        raise CheckpointError(_causes(error)) from error
    return writer


class PiecePlanner(DefaultSavePlanner):
    """Plans pieces that live on single ranks, where the default planner wants a DTensor on every rank."""

    def __init__(self, pieces: Mapping[str, Piece]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._pieces = pieces

    def create_local_plan(self) -> SavePlan:
        """This rank's pieces; their notes travel to the coordinator with the plan."""
        notes = {key: note_of(piece) for key, piece in self._pieces.items()}
        self.plan = SavePlan([_write_item(piece) for piece in self._pieces.values()], planner_data=notes)
        return self.plan

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        """On the coordinator: check, then let each piece be written by one of the ranks that hold it."""
        check_pieces([plan.planner_data for plan in all_plans])
        return super().create_global_plan([dataclasses.replace(plan, planner_data=None) for plan in all_plans])

    def lookup_object(self, index: MetadataIndex) -> Any:
        """The staged values of a planned piece."""
        return self._pieces[index.fqn].value


class PieceWriter(HuggingFaceStorageWriter):
    """Safetensors files of at most `FILE_BYTES` (or one piece) each; remembers what this rank wrote where."""

    def __init__(self, folder: Path) -> None:
        super().__init__(path=str(folder), save_distributed=True)
        self.files: dict[str, list[str]] = {}  # this rank's files and the keys in each

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's share."""
        buckets = _buckets({item.index.fqn: item.tensor_storage_size() or 0 for item in plan.items})
        planned = {**plan.storage_data, "fqn_to_index_mapping": buckets} if buckets else plan.storage_data
        fault_point("mid_save")
        future = super().write_data(dataclasses.replace(plan, storage_data=planned), planner)
        for result in future.wait():
            self.files.setdefault(result.storage_data.relative_path, []).append(result.index.fqn)
        return future


def tensor_entries(written: list[dict[str, list[list[Any]]]]) -> dict[str, TensorEntry]:
    """Manifest entries from what every rank wrote (`describe_written`)."""
    entries: dict[str, TensorEntry] = {}
    for rank_written in written:
        for file, rows in rank_written.items():
            for key, note in rows:
                known = entries.get(key)
                chunk = Chunk(file=file, offsets=tuple(note["offsets"]), shape=tuple(note["local_shape"]))
                entries[key] = TensorEntry(
                    shape=tuple(note["shape"]),
                    dtype=note["dtype"],
                    dims=None if note["dims"] is None else tuple(note["dims"]),
                    chunks=(*(known.chunks if known else ()), chunk),
                )
    return entries


def describe_written(writer: PieceWriter, pieces: Mapping[str, Piece]) -> dict[str, list[list[Any]]]:
    """By file of this rank: the key and the note of each piece in it, in plain JSON types."""
    return {
        file: [[key, dataclasses.asdict(note_of(pieces[key]))] for key in keys] for file, keys in writer.files.items()
    }


def _write_item(piece: Piece) -> WriteItem:
    offsets = torch.Size(piece.shard.offsets)
    return WriteItem(
        index=MetadataIndex(piece.key, offsets),
        type=WriteItemType.SHARD,
        tensor_data=TensorWriteData(
            chunk=ChunkStorageMetadata(offsets=offsets, sizes=piece.value.size()),
            properties=TensorProperties.create_from_tensor(piece.value),
            size=torch.Size(piece.shard.global_shape),
        ),
    )


def _buckets(sizes: Mapping[str, int]) -> dict[str, int]:
    """File number, from 1, of each key: filled in order up to `FILE_BYTES`."""
    numbers, number, filled = {}, 1, 0
    for key, size in sizes.items():
        if filled and filled + size > FILE_BYTES:
            number, filled = number + 1, 0
        numbers[key], filled = number, filled + size
    return numbers


def _causes(error: CheckpointException) -> str:
    return "; ".join(f"rank {rank}: {cause[0]}" for rank, cause in sorted(error.failures.items()))
