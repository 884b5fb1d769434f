"""What a process prints, and the traceback it ends with, hold no secret."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.identity import ROOT

CODE = """
import logging, sys, warnings
from conf.safety.streams import redact_streams
redact_streams(); redact_streams()
logging.warning("log c4n4ry-value")
warnings.warn("warning c4n4ry-value")
print("caf\\u00e9 c4n4ry-value", flush=True)
sys.stderr.writelines(["lines c4n4ry-value\\n"])
sys.__stdout__.write("the old stream shares the buffer\\n")
assert sys.stdout.isatty() is False and sys.stdout.encoding == sys.__stdout__.encoding
raise ValueError("error c4n4ry-value")
"""


def test_nothing_that_is_printed_holds_a_secret(monkeypatch):
    monkeypatch.setenv("GITHUB_PAT", "c4n4ry-value")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8")
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, encoding="utf-8", timeout=60)
    assert done.returncode == 1
    assert done.stdout == "caf\u00e9 [redacted]\nthe old stream shares the buffer\n"
    assert "c4n4ry" not in done.stderr
    for word in ("log", "warning", "lines", "ValueError: error"):
        assert f"{word} [redacted]" in done.stderr


def printed(command: str, tmp_path: Path, **environment: str) -> tuple[int, str]:
    """Exit code and stderr of a command line, in which $P is ours, in a shell."""
    ours = f"{sys.executable} -m launch.cli"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", "P": ours, **environment}
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr


@pytest.mark.parametrize("words", ["config", "--help", "train --help", "--version", "slurm name=x", "completion bash"])
def test_output_that_has_no_place_is_told_and_a_closed_stream_is_none(words: str, tmp_path: Path) -> None:
    for unbuffered in ("", "1"):
        code, said = printed(f"$P {words} > /dev/full", tmp_path, PYTHONUNBUFFERED=unbuffered)
        assert (code, said[:43]) == (2, "error: standard output: got 'No space left "), said
    assert printed(f"$P {words} >&-", tmp_path) == (0, "")
    assert printed(f"$P {words} <&- >&- 2>&-", tmp_path) == (0, "")


def test_an_error_that_cannot_be_printed_keeps_its_exit_code(tmp_path: Path) -> None:
    for streams in ("2> /dev/full", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", "> /dev/full 2> /dev/full"):
        assert printed(f"$P train train.steps=x {streams}", tmp_path)[0] == 2, streams
    assert (
        "TEXT: got 'nothing'" in printed("mkdir -p runs/a; touch runs/a/config.yaml; $P fill runs/a <&-", tmp_path)[1]
    )


def test_a_file_that_is_opened_later_does_not_become_a_closed_stream(tmp_path: Path) -> None:
    assert printed("$P slurm name=x --write x >&- 2>&-", tmp_path) == (0, "")
    script = (tmp_path / "x").read_text()
    assert script.startswith("#!/bin/bash\n")
    assert script.endswith('exit "$code"\n')


def test_characters_that_the_encoding_lacks_are_told_where_they_would_be_lost(tmp_path: Path) -> None:
    code, said = printed("$P slurm name=caf\u00e9", tmp_path, PYTHONIOENCODING="ascii")
    assert code == 2
    assert said == (
        "error: standard output: got U+00E9; needs an encoding that has it, not ascii; try PYTHONIOENCODING=utf-8\n"
    )


def test_a_working_directory_that_was_removed_is_told(tmp_path: Path) -> None:
    for words in ("config", "train train.steps=1", "slurm", "doctor --no-exchange", "eval x"):
        code, said = printed(f"mkdir d; cd d; rmdir ../d; $P {words}", tmp_path)
        assert (code, said[:42]) == (2, "error: working directory: got one that can"), said
