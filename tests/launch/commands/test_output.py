"""Files that a command is to write: what cannot be written is told before any work."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launch.cli import main
from launch.commands.output import write_output

COMMANDS = (
    ["slurm", "name=x", "--write"],
    ["config", "--fields", "--markdown"],
    ["bench", "layer", "--json"],
    ["bench", "layer", "--markdown"],
    ["verify-parallel", "--json"],
    ["study", "headline", "--markdown"],
)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("kind", ["folder", "fifo", "missing", "behind a file", "long"])
def test_a_place_that_cannot_be_written_is_refused(
    words: list[str], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    path = {"missing": "gone/x", "behind a file": "file/x", "long": "x" * 300}.get(kind, kind)
    assert main([*words, path]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: {words[-1]}: got '{path}'; needs a file that can be written (")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["fifo", "file", "folder"]


@pytest.mark.parametrize(
    "words",
    [*COMMANDS, ["prepare", "--out"], ["train", "--config"], ["eval"], ["import-hf"], ["study", "headline", "--out"]],
    ids=" ".join,
)
def test_an_empty_path_is_not_the_working_directory(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """As of a variable that is not set: `--out "$SHARDS"`."""
    assert main([*words, ""]) == 2
    assert "a path, and . for the working directory" in capsys.readouterr().err


def test_two_results_are_not_written_to_one_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "layer", "--json", "x", "--markdown", "./x"]) == 2
    assert "--markdown: got 'x'; needs another file than --json" in capsys.readouterr().err


def test_what_is_written_holds_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_APIKEY", "c4n4ry-value")
    write_output(tmp_path / "a", "x c4n4ry-value y\n")
    assert (tmp_path / "a").read_text() == "x [redacted] y\n"
