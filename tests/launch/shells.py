"""Scripts and printed commands run by a shell against commands that only write down what they were given."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

# What a script or a printed line may start; each writes down its words.
COMMANDS = (
    "sbatch", "scancel", "docker", "podman", "torchrun", "deepspeed", "python", "pointsman", "wandb", "tensorboard",
)  # fmt: skip
NOTE = """#!/bin/bash
printf '%s\\0' "$(basename "$0")" "$@" > "$NOTES/$(basename "$0").$$"
"""
SRUN = """#!/bin/bash
printf '%s\\0' srun "$@" > "$NOTES/srun.$$"
trap 'echo told >> "$NOTES/signals"' TERM
while [[ ${1-} == --* ]]; do shift; done
"$@"
exit "${SRUN_CODE:-0}"
"""
SCONTROL = """#!/bin/bash
printf '%s\\0' scontrol "$@" > "$NOTES/scontrol-$1.$$"
[ "$1" = show ] && echo first-node
exit 0
"""


class Shell:
    """A folder with stand-in commands, and what they were called with."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin, self.notes = folder, folder / "bin", folder / "notes"
        self.bin.mkdir()
        self.notes.mkdir()
        for name in COMMANDS:
            self.add(name, NOTE)
        self.add("srun", SRUN)
        self.add("scontrol", SCONTROL)

    def add(self, name: str, script: str) -> None:
        """One command."""
        path = self.bin / name
        path.write_text(script)
        path.chmod(0o755)

    def run(self, script: str, *, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run `script` as a job's."""
        environment = {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "NOTES": str(self.notes),
            "HOME": str(self.folder),
            "SLURM_JOB_ID": "77",
            "SLURM_JOB_NODELIST": "node[1-2]",
            **variables,
        }
        return subprocess.run(
            ["bash", "-c", script], cwd=cwd or self.folder, env=environment, capture_output=True, text=True, timeout=30
        )

    def called(self, name: str) -> list[list[str]]:
        """The words of every call of a command, oldest first."""
        notes = sorted(self.notes.glob(f"{name}.*"), key=lambda path: path.stat().st_mtime_ns)
        return [path.read_bytes().decode().split("\0")[1:-1] for path in notes]


def sbatch_options(script: str) -> dict[str, str]:
    """The directives as Slurm's `_get_argument` (src/sbatch/opt.c) reads them."""
    found = {}
    for line in script.splitlines():
        if line.startswith("#SBATCH"):
            for word in _arguments(line.removeprefix("#SBATCH")):
                name, _, value = word.partition("=")
                found[name.removeprefix("--")] = value
        elif line and not line.startswith("#"):
            break
    return found


def _arguments(line: str) -> list[str]:
    words: list[str] = []
    word, inside, quote, escaped = "", False, "", False
    for sign in line:
        if escaped:
            word, escaped = word + sign, False
        elif sign == "\\":
            inside = escaped = True
        elif quote:
            quote, word = ("", word) if sign == quote else (quote, word + sign)
        elif sign in "'\"":
            inside, quote = True, sign
        elif sign.isspace():
            if inside:
                words.append(word)
            word, inside = "", False
        elif sign == "#":
            break
        else:
            word, inside = word + sign, True
    assert not quote, f"unmatched {quote} in {line}"
    return [*words, word] if inside else words
