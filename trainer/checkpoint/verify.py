"""Whether a checkpoint is, byte for byte, what was written."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from conf.errors import CheckpointError
from trainer.checkpoint.files import HASH_THREADS, problem_of, step_of
from trainer.checkpoint.manifest import load_manifest


def verify(folder: Path, *, share: int = 0, shares: int = 1) -> list[str]:
    """Everything wrong with a checkpoint directory, each naming its file; empty if it is whole. Reads every byte.

    With `shares` above 1 only one file in so many is read, so that ranks can split the work.
    """
    try:
        manifest = load_manifest(folder)
    except CheckpointError as error:
        return [str(error)]
    if folder.name.startswith("step_") and manifest.step != step_of(folder):
        return [f"manifest.json: of step {manifest.step}; the directory was renamed"]
    with ThreadPoolExecutor(HASH_THREADS) as pool:
        mine = sorted(manifest.files.items())[share::shares]
        problems = pool.map(lambda item: problem_of(folder / item[0], item[1]), mine)
        return [problem for problem in problems if problem is not None]
