"""What shells are answered, by the protocol of environment variables their scripts use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.cli import main
from launch.identity import ROOT
from tests.launch.test_cli import make_runs


def answers(line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Values that Bash would be given for `line`, the cursor at its end."""
    monkeypatch.setenv("_POINTSMAN_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", line)
    assert main([]) == 0
    return [each.partition(",")[2] for each in capsys.readouterr().out.split()]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("pointsman ver", ["verify-parallel"]),
        ("pointsman study ", ["headline", "precision"]),
        ("pointsman study pre", ["precision"]),
        ("pointsman fill --b", ["--beams"]),
        ("pointsman train train.st", ["train.steps="]),
        ("pointsman train model=t5_s", ["model=t5_small"]),
        ("pointsman train name=x schedule.name=c", ["schedule.name=cosine", "schedule.name=constant"]),
        ("pointsman train --debug train.activation_checkpointing=t", ["train.activation_checkpointing=true"]),
        ("pointsman train optim", ["optim=", "optim."]),
        ("pointsman bench rou", ["router"]),
        ("pointsman bench layer moe=f", ["moe=flaxformer"]),
        ("pointsman study headline --steps 3 logging.wandb=of", ["logging.wandb=offline", "logging.wandb=off"]),
        ("pointsman completion ", ["bash", "zsh", "fish"]),
        ("pointsman export-hf run --dtype fl", ["float32", "float16"]),
        ("pointsman no-such-command x", []),
        ("pointsman train --no-such-option x train.st", ["train.steps="]),
    ],
)
def test_words_are_completed(
    line: str, expected: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = answers(line, capsys, monkeypatch)
    assert sorted(found) == sorted(expected)


def test_every_command_is_offered_with_nothing_typed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {"train", "eval", "verify-parallel", "completion"} <= set(answers("pointsman ", capsys, monkeypatch))


def test_runs_are_completed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    make_runs(tmp_path, "second", "first")  # the newest last
    assert answers("pointsman eval ", capsys, monkeypatch) == ["runs/first", "runs/second"]
    assert answers("pointsman fill runs/f", capsys, monkeypatch) == ["runs/first"]
    assert answers("pointsman eval runs/first data.so", capsys, monkeypatch) == ["data.source="]


def test_the_protocol_with_a_count_of_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMP_CWORD", "2")
    assert "train.steps=" in answers("pointsman train train.s", capsys, monkeypatch)
    assert "model=" in answers("pointsman train", capsys, monkeypatch)


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_answers_too(
    shell: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_POINTSMAN_COMPLETE", f"{shell}_complete")
    monkeypatch.setenv("COMP_WORDS", "pointsman train moe=fl")
    monkeypatch.setenv("COMP_CWORD", "2" if shell == "zsh" else "moe=fl")
    assert main([]) == 0
    assert "moe=flaxformer" in capsys.readouterr().out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_command_prints_the_script_that_the_variable_asks_for(
    shell: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert f"_POINTSMAN_COMPLETE={shell}_complete" in script
    monkeypatch.setenv("_POINTSMAN_COMPLETE", f"{shell}_source")
    assert main([]) == 0
    assert capsys.readouterr().out == script


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("pointsman train model=t5_s", "t5_small"),
        ("pointsman train train.st", "train.steps="),
        ("pointsman ev", "eval"),
    ],
)
def test_bash_itself_completes(line: str, expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The printed script in a real Bash: of a word that Bash cuts at `=` only the part behind it is answered."""
    assert main(["completion", "bash"]) == 0
    (tmp_path / "pointsman").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m launch.cli "$@"\n')
    (tmp_path / "pointsman").chmod(0o755)
    asked = f"COMP_LINE='{line}' COMP_POINT={len(line)}\n_pointsman_completion pointsman\n"
    script = f"{capsys.readouterr().out}\n{asked}printf '%s\\n' \"${{COMPREPLY[@]}}\""
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "--norc", "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == [expected], done.stderr
