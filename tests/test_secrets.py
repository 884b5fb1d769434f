"""Secrets in settings and variables, and everything that a run and what follows it write and print: none is there."""

from __future__ import annotations

import os
import pydoc_data.topics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_end_to_end import SMALL, environment

CANARY = "c4n4ry"
VARIABLES = {
    "GITHUB_PAT": f"{CANARY}-of-github",
    "SLURM_JWT": f"{CANARY}-of-slurm",
    "OPENAI_APIKEY": f"{CANARY}-of-openai",
    "WANDB_API_KEY": (CANARY * 7)[:40],
    "DATABASE_URL": f"postgres://me:{CANARY}-of-base@host/base",
}
IN_A_PATH = f"https:/me:{CANARY}-of-files@host"  # what a URL is once it has been taken for a path
SETTINGS = (
    f"logging.wandb_project={VARIABLES['OPENAI_APIKEY']}",
    f"logging.wandb_entity=https://me:{CANARY}-of-entity@host",
    f"launch.slurm_container=docker://me:{CANARY}-of-image@registry/image",
    f"launch.slurm_account={VARIABLES['GITHUB_PAT']}",
    f"data.hub_revision=ghp_{CANARY}0123456789abcdef",
    "logging.tensorboard=true",
)


class Folder:
    """A folder in which commands are run; what they print is kept, and looked through with all that they wrote."""

    def __init__(self, path: Path) -> None:
        self.path, self.printed = path, ""

    def pointsman(self, *words: object, code: int = 0) -> str:
        """Run a command, which ends with `code`; what it printed."""
        command = [str(Path(sys.executable).with_name("python")), "-m", "launch.cli", *map(str, words)]
        done = subprocess.run(
            command,
            cwd=self.path,
            env={**environment(), **VARIABLES, "PYTHONPATH": os.pathsep.join(sys.path), "WANDB_MODE": "offline"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
        )
        self.printed += done.stdout
        assert done.returncode == code, done.stdout
        return done.stdout

    def leaks(self) -> Iterator[str]:
        """Where a canary is."""
        if CANARY in self.printed:
            yield "printed: " + next(line for line in self.printed.splitlines() if CANARY in line)
        for path in self.path.rglob("*"):
            if path.is_file() and "source" not in path.relative_to(self.path).parts:
                content = path.read_bytes()
                if CANARY.encode() in content:
                    place = content.index(CANARY.encode())
                    yield f"{path}: {content[max(place - 80, 0) : place + 20]!r}"


@pytest.mark.slow
def test_nothing_that_is_written_or_printed_holds_a_secret(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    text = tmp_path / "source" / IN_A_PATH / "topics.txt"
    text.parent.mkdir(parents=True)
    text.write_text("\n\n".join(topic for _, topic in sorted(pydoc_data.topics.topics.items())))
    files = f"data.files={text}"
    train = ("train", "name=first", "data.cache_dir=cache", "train.eval_every=2", "launch.nproc=2")
    folder.pointsman(*train, *SMALL, *SETTINGS, files, "train.steps=2")
    run = tmp_path / "runs" / "first"
    wandb = list((run / "wandb").glob("offline-run-*/*.wandb"))
    assert len(wandb) == 1
    assert [*run.glob("tensorboard/events.*"), *run.glob("checkpoints/*/state.json")]
    assert "[redacted]" in (run / "config.yaml").read_text()
    assert "slurm_account: ${oc.env:GITHUB_PAT}" in (run / "overrides.yaml").read_text().replace("launch.", "")

    told = folder.pointsman("train", "name=first", "train.steps=4", code=2)
    assert "data.files: got" in told or "data.hub_revision: got" in told
    again = [word for word in (*SETTINGS, files) if VARIABLES["GITHUB_PAT"] not in word]
    assert "continuing at step 2" in folder.pointsman("train", "name=first", "train.steps=4", *again)

    folder.pointsman("eval", "runs/first", files)
    folder.pointsman("export-hf", "runs/first", "exported")
    folder.pointsman("config", "name=first", *again)
    job = ("slurm", "--write", "job", "name=second")
    folder.pointsman(*job, f"launch.slurm_account={VARIABLES['GITHUB_PAT']}", code=2)
    folder.pointsman(*job, f"data.text_field={VARIABLES['GITHUB_PAT']}")
    assert "data.text_field=${oc.env:GITHUB_PAT}" in (tmp_path / "job").read_text()
    folder.pointsman("--debug", "train", files + ".gone", "data=text", "name=third", code=2)
    folder.pointsman("train", f"data.api_key={CANARY}", code=2)
    folder.pointsman("train", f"--db-password={CANARY}", code=2)
    assert list(folder.leaks()) == []
