"""The `pointsman` command as a user meets it: help, typos, errors, speed of its start."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import launch.local
from conf.errors import SetupError
from launch.cli import main
from launch.commands import COMMANDS
from launch.identity import ROOT


def test_overview_teaches_every_command_and_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for name in COMMANDS:
        assert re.search(rf"^  {name} ", text, re.MULTILINE), name
    assert "switch_base_8  switch_base_16" in text  # presets, in the order of their numbers
    assert max(map(len, text.splitlines())) <= 120
    assert main([]) == 0
    assert capsys.readouterr().out == text


@pytest.mark.parametrize("name", [command.name for command in COMMANDS.values() if command.module is None])
def test_help_of_a_command_has_usage_and_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "model=nonsense", "--help"]) == 0
    text = capsys.readouterr().out
    assert f"usage: pointsman {name}" in text
    assert text.count(f"pointsman {name}") >= 2


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert re.fullmatch(r"pointsman \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("typed", "advice"),
    [
        ("trian", "try pointsman train"),
        ("xyz", "try pointsman --help"),
        ("train.steps=3", "try pointsman train train.s"),
    ],
)
def test_mistyped_command_gets_advice(typed: str, advice: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([typed]) == 2
    text = capsys.readouterr().err
    assert text.startswith(f"error: command: got '{typed}'; needs one of train, ")
    assert advice in text
    assert "Traceback" not in text


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POINTSMAN_DEBUG", "0")
    assert main(["--debug", "trian"]) == 2
    text = capsys.readouterr().err
    assert "Traceback" in text
    assert text.splitlines()[-1].startswith("error: command")


def test_bad_override_is_told_briefly_before_any_rank_starts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch.local, "become", lambda _: pytest.fail("ranks were started"))
    assert main(["train", "train.stpes=3"]) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: train.stpes")
    assert "Traceback" not in text


def test_train_becomes_the_launcher_of_its_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[Any] = []
    monkeypatch.setattr(launch.local, "become", lambda start: became.append(start) or 0)
    assert main(["train", "launch.nproc=1", "parallel.ep=1", "train.steps=300"]) == 0
    assert became[0].command[1:] == ("-m", "trainer.main", "launch.nproc=1", "parallel.ep=1", "train.steps=300")


def test_a_run_that_may_be_restarted_gets_a_name_under_which_it_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[Any] = []
    monkeypatch.setattr(launch.local, "become", lambda start: became.append(start) or 0)
    assert main(["train", "launch.max_restarts=2"]) == 0
    assert main(["train", "launch.max_restarts=2", "name=mine"]) == 0
    assert became[0].command[-1].startswith("name=small-")
    assert became[1].command[-1] == "name=mine"


def test_nodes_cannot_each_choose_a_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(launch.local, "become", lambda _: pytest.fail("ranks were started"))
    words = ["train", "launch.nodes=2", "launch.rdzv_endpoint=first:29500", "launch.max_restarts=2"]
    assert main(words) == 2
    assert capsys.readouterr().err.startswith("error: name: got None; needs a name, the same on every node")


def test_commands_with_a_module_get_their_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Module:
        @staticmethod
        def main(argv: list[str]) -> int:
            seen.append(argv)
            raise SetupError("no such run")

    monkeypatch.setattr("launch.cli.importlib.import_module", lambda name: seen.append(name) or Module)
    assert main(["fill", "a sentence", "--beams", "4"]) == 2
    assert seen == ["trainer.commands.fill", ["a sentence", "--beams", "4"]]


def test_start_is_quick_and_free_of_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from launch.cli import main; main(['--help']); main(['train', 'train.steps=-1']);"
        "print(sorted({'torch', 'deepspeed', 'megatron', 'datasets', 'wandb'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_console_script_ignores_a_package_of_the_working_directory(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("pointsman")
    for name in ("data", "launch", "conf"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONSAFEPATH", "PYTHONPATH")}
    done = subprocess.run([script, "train", "x"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert done.stderr.startswith("error: "), done.stderr
    assert str(ROOT) not in done.stderr


def test_reader_that_stops_early_sees_no_traceback() -> None:
    done = subprocess.run(
        f"{sys.executable} -m launch.cli --help | head -n 1", shell=True, capture_output=True, text=True, cwd=ROOT
    )
    assert (done.stdout.count("\n"), done.stderr) == (1, "")
