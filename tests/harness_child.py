"""What one rank of `tests.harness` does: join the process group, run the function, write down the outcome."""

from __future__ import annotations

import faulthandler
import os
import pickle
import signal
import sys
import traceback
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything a rank needs; plain types only, so that the fork server can take it."""

    rank: int
    world: int
    folder: str
    call: bytes  # pickled (fn, args): unpickled in the child, where a failure to import is reported like any other
    timeout_s: float
    backend: str | None
    environment: dict[str, str]  # the test's environment, not that of the moment the fork server started


class RankFiles:
    """Files by which a rank reports; they outlive a rank that is killed."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.result = folder / f"result.{rank}"
        self.stack = folder / f"stack.{rank}"
        self.output = folder / f"output.{rank}"


def run(job: Job) -> None:
    """Body of a rank process. Exit code 0: fn returned; 1: it raised."""
    files = RankFiles(Path(job.folder), job.rank)
    _redirect(files.output)
    with files.stack.open("w") as stack:
        faulthandler.enable(stack, all_threads=True)
        faulthandler.register(signal.SIGUSR1, stack, all_threads=True)
        outcome = _run(job)
        temporary = files.result.with_name(files.result.name + ".tmp")
        temporary.write_bytes(pickle.dumps(outcome))
        temporary.rename(files.result)
        sys.stdout.flush()
        sys.stderr.flush()
        faulthandler.unregister(signal.SIGUSR1)
        faulthandler.disable()
    if "error" in outcome:
        sys.exit(1)


def _run(job: Job) -> dict[str, object]:
    import torch.distributed as dist

    try:
        _join(job)
        fn, args = pickle.loads(job.call)
        value = fn(job.rank, job.world, *args)
        pickle.dumps(value)  # a result that cannot travel is this rank's error
        if dist.is_initialized():
            dist.destroy_process_group()
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        return {"error": traceback.format_exc(), "error_type": type(error).__name__}
    return {"value": value}


def _join(job: Job) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ.clear()
    os.environ.update(job.environment)
    os.environ.update(RANK=str(job.rank), WORLD_SIZE=str(job.world), LOCAL_RANK=str(job.rank))
    os.environ.update(LOCAL_WORLD_SIZE=str(job.world), OMP_NUM_THREADS="1")
    if job.backend is not None:
        store = dist.FileStore(str(Path(job.folder) / "store"), job.world)
        dist.init_process_group(
            job.backend, store=store, rank=job.rank, world_size=job.world, timeout=timedelta(seconds=job.timeout_s)
        )


def _redirect(path: Path) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
