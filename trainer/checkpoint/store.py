"""The checkpoints of one run: which there are, which is the newest whole one, writing the next, retention, the lock."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conf.errors import CheckpointError, ConfigError
from conf.safety.regular import read_regular
from parallel.engine.protocol import StateTensor
from parallel.layers.sharding import Shard
from parallel.mesh import collectives
from parallel.mesh.axes import Mesh
from parallel.mesh.groups import new_control_axis
from trainer.checkpoint import files
from trainer.checkpoint.commit import SaveJob, write_checkpoint
from trainer.checkpoint.manifest import MANIFEST_FILE
from trainer.checkpoint.pieces import Piece, stage
from trainer.checkpoint.verify import verify

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class SaveResult:
    """How a save ended; the same on every rank, unless a rank died."""

    step: int
    path: Path | None  # the committed directory; None: nothing was committed
    error: CheckpointError | None
    seconds: float  # in the background


class CheckpointStore:
    """Checkpoints below one directory. Collective functions say so; the rest is local."""

    def __init__(
        self,
        root: Path,
        mesh: Mesh,
        *,
        keep_last: int = 2,
        keep_every: int | None = None,
        max_failures: int = 3,
        lock: bool = True,
        timeout_s: float = 1800,
    ) -> None:
        """Collective if `lock`: take the directory for this job, clean what killed saves left, make a group to save on.

        `lock=False` is for reading alone; `save` is then refused. `timeout_s` bounds the wait for the slowest rank's
        disk. Raises ConfigError on every rank if another job holds the directory.
        """
        self.root = root
        self.failed = 0  # saves that failed since the start
        self.failed_in_a_row = 0
        self._groups, self._keep_last, self._keep_every = mesh, keep_last, keep_every
        self._max_failures = max_failures
        self._axis = new_control_axis(mesh, "checkpoint", timeout_s=timeout_s) if lock else None
        self._lock: files.FolderLock | None = None
        self._thread: threading.Thread | None = None
        self._running: list[SaveResult] = []  # filled by the thread
        self._unreported: list[SaveResult] = []
        self._newest: SaveResult | None = None
        if lock:
            self._take()

    # ---------------------------------------------------------------------------------------------------- choosing

    def list(self) -> list[Path]:
        """Committed checkpoints, newest first; whether they are whole is not looked at."""
        return files.committed(self.root)

    def latest_valid(self) -> Path | None:
        """Collective. The newest checkpoint whose every byte is as written; None if there is none at all.

        Rank 0 lists and decides; every rank checks that it sees the same directory and reads its share of the files.
        Warns about each broken one that is passed over. Raises CheckpointError on every rank if all are broken,
        listing each and why.
        """
        control = self._groups.control
        broken = []
        for name in collectives.broadcast_object([path.name for path in self.list()], control):
            problems = self._problems(self.root / name)
            if not problems:
                return self.root / name
            broken.append(f"{name}: {'; '.join(problems)}")
            if control.rank == 0:
                logger.warning("CHECKPOINT PASSED OVER: %s", broken[-1])
        if broken:
            listed = "\n  ".join(broken)
            raise CheckpointError(
                f"no checkpoint in {self.root} is whole:\n  {listed}\nRestore one of them from a copy, or start "
                "again under another name; training does not start from scratch over them"
            )
        return None

    def require_empty(self) -> None:
        """Raise ConfigError if there are checkpoints: a fresh start here would mix two runs."""
        if found := self.list():
            raise ConfigError(
                "train.resume", got="never", needs=f"a run without checkpoints, but {self.root} holds {found[0].name}",
                hint="train.resume=auto to continue it, or another name=",
            )  # fmt: skip

    def raise_missing(self) -> None:
        """Raise the CheckpointError of a run that must resume and cannot."""
        raise CheckpointError(
            f"train.resume=required, but {self.root} holds no checkpoint; try train.resume=auto, or another name="
        )

    def _problems(self, path: Path) -> list[str]:
        """Collective: what is wrong with a checkpoint, found by all ranks together."""
        control = self._groups.control
        digests = collectives.gather_objects(_manifest_digest(path), control)
        unlike = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
        if unlike:
            raise CheckpointError(
                f"{path}: rank 0 lists it, but ranks {unlike} do not see the same directory; "
                "checkpoints must be on a file system that all nodes share"
            )
        found = collectives.gather_objects(verify(path, share=control.rank, shares=control.size), control)
        return list(dict.fromkeys(problem for problems in found for problem in problems))

    # ------------------------------------------------------------------------------------------------------ writing

    def save(
        self, step: int, tensors: Iterable[StateTensor], shards: Mapping[str, Shard], state: Mapping[str, Any]
    ) -> None:
        """Collective: copy this rank's part to CPU memory and write the checkpoint in the background.

        `tensors`: what this rank owns (`Engine.read_state`); `shards`: this rank's shard of every parameter; `state`:
        JSON for `state.json`, rank 0's counts. Waits for the save before. A failure does not raise here but is
        reported by `poll` and `wait`; after `max_failures` in a row this one is waited for, and raises if it fails too.
        """
        assert self._axis is not None, "a store opened with lock=False cannot save"
        self._join()
        last_chance = self.failed_in_a_row >= self._max_failures  # the same on every rank
        pieces: dict[str, Piece] = {}
        encoded, staging_error = b"", None
        try:
            pieces = stage(tensors, shards)
            encoded = json.dumps(dict(state), indent=1).encode()
        except (CheckpointError, TypeError, ValueError) as error:
            staging_error = str(error)
        job = SaveJob(
            root=self.root, step=step, pieces=pieces, state=encoded, staging_error=staging_error, axis=self._axis
        )
        self._thread = threading.Thread(target=self._work, args=(job,), name=f"checkpoint-{step}", daemon=True)
        self._thread.start()
        if last_chance:
            self._join()
            if self._newest is not None and self._newest.error is not None:
                raise CheckpointError(
                    f"{self.failed_in_a_row} saves in a row have failed; the last: {self._newest.error}"
                )

    def poll(self) -> SaveResult | None:
        """Local and cheap: a save that has ended since it was last asked, or None. Never raises.

        The outcome is the same on every rank but may be seen a step apart: decide over the control axis.
        """
        if self._thread is not None and not self._thread.is_alive():
            self._join()
        return self._unreported.pop(0) if self._unreported else None

    def wait(self) -> SaveResult | None:
        """Wait for the save under way; the newest result, None if there is none. CheckpointError if it failed."""
        self._join()
        self._unreported.clear()
        if self._newest is not None and self._newest.error is not None:
            raise self._newest.error
        return self._newest

    def close(self, *, abandon: bool = False) -> None:
        """Wait for the save under way and let other jobs have the directory. A failure was or will be logged.

        `abandon`: a rank that the save waits for is lost, and so is the save; the next start removes its files.
        """
        if abandon:
            self._thread = None
        self._join()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _work(self, job: SaveJob) -> None:
        """Body of the background thread: every outcome, even an unexpected one, becomes a result."""
        began = time.perf_counter()
        path, error = None, None
        try:
            path = write_checkpoint(job)
            if self._groups.is_main:
                self._retain(job.step)
        except BaseException as caught:
            error = caught if isinstance(caught, CheckpointError) else CheckpointError(_described(caught))
        self._running.append(SaveResult(step=job.step, path=path, error=error, seconds=time.perf_counter() - began))

    def _join(self) -> None:
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        result = self._running.pop()
        self._newest = result
        self._unreported.append(result)
        if result.error is None:
            self.failed_in_a_row = 0
            return
        self.failed += 1
        self.failed_in_a_row += 1
        logger.error("checkpoint of step %d was not saved: %s", result.step, result.error)

    def _retain(self, newest: int) -> None:
        """Give up old checkpoints. What cannot be removed is no reason to call the save a failure."""
        steps = [files.step_of(path) for path in self.list()]
        for step in files.superseded(steps, newest=newest, keep_last=self._keep_last, keep_every=self._keep_every):
            try:
                files.remove(files.step_folder(self.root, step))
            except OSError as error:
                logger.warning("old checkpoint of step %d could not be removed: %s", step, error)

    def _take(self) -> None:
        error: dict[str, str] | None = None
        if self._groups.is_main:
            try:
                self.root.mkdir(parents=True, exist_ok=True)
                self._lock = files.FolderLock(self.root)
                if stale := files.remove_uncommitted(self.root):
                    logger.warning("removed what interrupted saves left in %s: %s", self.root, ", ".join(stale))
            except ConfigError as refused:
                error = {"field": refused.field, "got": str(refused.got), "needs": refused.needs, "hint": refused.hint}
            except OSError as refused:
                error = {"field": "runs_dir", "got": str(self.root), "needs": f"a writable directory ({refused})"}
        error = collectives.broadcast_object(error, self._groups.control)
        if error is not None:
            raise ConfigError(**error)


def _manifest_digest(path: Path) -> str:
    try:
        return hashlib.sha256(read_regular(path / MANIFEST_FILE)).hexdigest()
    except OSError:
        # That of a checkpoint cut short, when its directory is there; it is then broken, and for all ranks alike.
        return "no manifest" if path.is_dir() else "no directory"


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
