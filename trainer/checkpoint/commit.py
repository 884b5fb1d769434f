"""One save from staged pieces to the committed directory, in the order that survives a kill at any instant."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conf.errors import CheckpointError
from conf.safety.writing import write_whole
from parallel.mesh import collectives
from parallel.mesh.axes import Axis
from parallel.mesh.collectives import fault_point
from trainer.checkpoint import files
from trainer.checkpoint.manifest import MANIFEST_FILE, STATE_FILE, FileEntry, Manifest
from trainer.checkpoint.pieces import Piece
from trainer.checkpoint.storage import describe_written, tensor_entries, write_pieces


@dataclass(frozen=True, kw_only=True)
class SaveJob:
    """Everything one rank needs to write its part of a checkpoint."""

    root: Path
    step: int
    pieces: Mapping[str, Piece]
    state: bytes  # content of state.json; that of rank 0 counts
    staging_error: str | None  # why this rank has no pieces; fails the save on every rank
    axis: Axis  # all ranks, on a group that nothing else uses


def write_checkpoint(job: SaveJob) -> Path:
    """Collective. Returns the committed directory; raises CheckpointError on every rank, with nothing committed.

    Order: data written and flushed; state and manifest written and flushed; their directory flushed; every rank
    heard of (barrier); rename; the parent directory flushed. Only the rename makes the checkpoint exist.
    """
    folder = files.saving_folder(job.root, job.step)
    try:
        _agree(job.axis, "staging", job.staging_error)
        _on_main(job.axis, lambda: _fresh_folder(folder))
        writer = write_pieces(folder, job.pieces, job.axis)
        described = _every_rank(job.axis, lambda: _describe(folder, describe_written(writer, job.pieces)))
        _on_main(job.axis, lambda: _finish(folder, job, described))
        collectives.barrier(job.axis, what=f"commit of step {job.step}")
    except Exception:
        if job.axis.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)  # a full disk needs the room; what stays is removed at start
        raise
    fault_point("before_commit")
    final = files.step_folder(job.root, job.step)
    _on_main(job.axis, lambda: _commit(folder, final))
    fault_point("after_commit")
    return final


def _fresh_folder(folder: Path) -> None:
    files.delete(folder)
    folder.mkdir(parents=True)


def _describe(folder: Path, written: dict[str, list[list[Any]]]) -> dict[str, Any]:
    """What this rank wrote, with the digests of its files as they are on disk."""
    entries = files.describe_files(folder, written)
    return {"written": written, "files": {name: [entry.size, entry.sha256] for name, entry in entries.items()}}


def _finish(folder: Path, job: SaveJob, described: list[dict[str, Any]]) -> None:
    """Rank 0: state.json, then the manifest, then the directory's entries."""
    write_whole(folder / STATE_FILE, job.state, durable=True)
    listed = {name: FileEntry(size=size, sha256=sha) for d in described for name, (size, sha) in d["files"].items()}
    listed[STATE_FILE] = files.describe_file(folder / STATE_FILE)
    tensors = tensor_entries([d["written"] for d in described])
    manifest = Manifest(step=job.step, tensors=tensors, files=listed)
    write_whole(folder / MANIFEST_FILE, manifest.encode(), durable=True)
    files.sync_folder(folder)


def _commit(folder: Path, final: Path) -> None:
    """Rank 0. A checkpoint of the same step was found broken, or left, by this run: the new one takes its place."""
    if final.exists():
        files.remove(final)
    folder.rename(final)
    files.sync_folder(final.parent)


def _on_main(axis: Axis, act: Callable[[], None]) -> None:
    """Run `act` on rank 0; raise CheckpointError on every rank if it fails there."""
    error = _error_of(act) if axis.rank == 0 else None
    error = collectives.broadcast_object(error, axis)
    if error is not None:
        raise CheckpointError(f"rank 0: {error}")


def _every_rank(axis: Axis, act: Callable[[], dict[str, Any]]) -> list[dict[str, Any]]:
    """Run `act` on every rank and give all results to all; raise CheckpointError on every rank if one fails."""
    result: dict[str, Any] = {}
    error = _error_of(lambda: result.update(act()))
    _agree(axis, "reading back what was written", error)
    return collectives.gather_objects(result, axis)


def _agree(axis: Axis, what: str, error: str | None) -> None:
    errors = collectives.gather_objects(error, axis)
    if any(errors):
        listed = "; ".join(f"rank {rank}: {text}" for rank, text in enumerate(errors) if text)
        raise CheckpointError(f"{what}: {listed}")


def _error_of(act: Callable[[], object]) -> str | None:
    try:
        act()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None
