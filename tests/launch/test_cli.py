"""The `pointsman` command as a user meets it: help, typos, errors, speed of its start."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import launch.local
from conf.errors import SetupError
from launch.cli import main
from launch.commands.table import COMMANDS
from launch.identity import ROOT
from measure.studies.study import STUDIES
from trainer.commands import fill


def test_overview_teaches_every_command_and_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for row in COMMANDS:
        assert re.search(rf"^  {row.name} ", text, re.MULTILINE), row
    assert "switch_base_8  switch_base_16" in text  # presets, in the order of their numbers
    assert max(map(len, text.splitlines())) <= 120
    assert main([]) == 0
    assert capsys.readouterr().out == text


COMMAND_LINES = [[row.name] for row in COMMANDS] + [["study", row.name] for row in STUDIES]


@pytest.mark.parametrize("words", COMMAND_LINES, ids=" ".join)
def test_every_command_explains_itself(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "x=nonsense", "--help"]) == 0 if words != ["study"] else main(["study", "-h"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: pointsman {' '.join(words)} ")
    assert "  -h, --help" in text
    assert "  --debug" in text
    assert max(map(len, text.splitlines())) <= 120
    assert main(["help", *words]) == 0
    assert capsys.readouterr().out == text


@pytest.mark.parametrize(
    "words", [["train"], ["eval", "r"], ["prepare"], ["config"], ["verify-parallel"], ["bench"], ["study", "headline"]]
)
def test_settings_have_one_help_text(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--help"]) == 0
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert re.search(r"OVERRIDE\]\.\.\. settings: FIELD=VALUE or GROUP=PRESET, wherever among the options", text)
    assert "--config FILE a YAML file of settings; typed ones win" in text


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


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["train", "--train.steps=3"],
            "pointsman train: got '--train.steps'; needs an option that it has: .*; try train.steps=3",
        ),
        (["fill", "--baems", "4"], "pointsman fill: got '--baems'; needs an option .*; try --beams"),
        (
            ["fill", "r", "--beams", "x"],
            "--beams: got 'x'; needs a whole number, at least 1 and at most 1024; try pointsman fill --help",
        ),
        (["doctor", "--ranks", "0"], "--ranks: got '0'; needs a whole number, at least 1 and at most 1024; "),
        (["export-hf", "r", "--dtype", "int8"], "--dtype: got 'int8'; needs one of float32, bfloat16, float16; "),
        (["prepare", "--out"], "--out: got 'nothing'; needs DIR: where the shards go"),
        (["generate", "r", "--ids=3"], "--ids: got 'a value'; needs none: it is a switch; try --ids"),
        (["doctor", "extra"], "pointsman doctor: got unexpected extra argument"),
        (["study"], "study: got 'nothing'; needs one of headline, precision; "),
        (
            ["study", "headlien"],
            "study: got 'headlien'; needs one of headline, precision; try pointsman study headline",
        ),
        (["completion", "tcsh"], "SHELL: 'tcsh' is not one of 'bash', 'zsh', 'fish'; "),
        (["--verison"], "pointsman: got '--verison'; .*; try --version"),
        (["slurm", "--write", "x", "--submit"], "--write: got '--submit as well'; needs one of the two"),
    ],
)
def test_what_is_wrong_with_a_line_is_told_in_one(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    text = capsys.readouterr().err
    assert re.match(f"error: {told}", text), text
    assert text.count("\n") == 1


@pytest.mark.parametrize("name", ["eval", "fill", "generate", "export-hf"])
def test_a_missing_run_is_told_with_the_runs_there_are(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    start = "error: RUN: got 'nothing'; needs a run folder, or one checkpoint folder in it; try "
    assert main([name]) == 2
    assert capsys.readouterr().err == f"{start}`pointsman train name=first`, which makes runs/first\n"
    make_runs(tmp_path, "old", "new")
    assert main([name]) == 2
    assert capsys.readouterr().err == f"{start}runs/new, runs/old\n"


def test_a_misspelt_run_is_told_with_the_one_it_looks_like(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_runs(tmp_path, "first", "other")
    for typed, hint in (("runs/frist", "runs/first"), ("elsewhere", "runs/other, runs/first")):
        assert main(["eval", typed]) == 2
        told = f"error: RUN: got '{typed}'; needs a run folder or one of its checkpoints; try {hint}\n"
        assert capsys.readouterr().err == told


def make_runs(folder: Path, *names: str) -> None:
    for age, name in enumerate(reversed(names)):
        (folder / "runs" / name).mkdir(parents=True)
        config = folder / "runs" / name / "config.yaml"
        config.touch()
        os.utime(config, (1e9 - age, 1e9 - age))


def test_options_stand_before_or_behind_settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    scripts = []
    for words in (
        ["--write", "a", "name=x", "seed=3"],
        ["name=x", "seed=3", "--write", "a"],
        ["name=x", "--write=a", "seed=3"],
    ):
        assert main(["slurm", *words]) == 0
        scripts.append(Path("a").read_text())
    assert "seed=3" in scripts[0]
    assert len(set(scripts)) == 1


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


def test_a_command_ends_with_the_code_of_its_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fill, "fill", lambda *_, **__: (_ for _ in ()).throw(SetupError("no such run")))
    assert main(["fill", "run", "a <mask>", "--beams", "4"]) == 2
    monkeypatch.setattr(fill, "fill", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(["fill", "run", "a <mask>"]) == 130


def test_start_is_free_of_torch_and_help_of_hydra_too(tmp_path: Path) -> None:
    code = (
        "import sys; from launch.cli import main\n"
        f"for words in {[[], *COMMAND_LINES]!r}: main([*words, '--help'])\n"
        "print({'torch', 'numpy', 'hydra', 'omegaconf', 'wandb'} & set(sys.modules), file=sys.stderr)\n"
        "main(['train', 'train.steps=-1']); main(['config'])\n"
        "print({'torch', 'deepspeed', 'megatron', 'datasets', 'wandb'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    lines = done.stderr.splitlines()
    assert (lines[0], lines[-1]) == ("set()", "set()"), done.stderr
    assert done.returncode == 0


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


def test_files_of_settings_stand_for_typed_ones(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("model: small_long\ntrain: {steps: 30, log_every: 5}\n")
    assert main(["config", "train.steps=40", "--config", f"{tmp_path}/mine.yaml"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["model"]["preset"], printed["train"]["steps"], printed["train"]["log_every"]) == (
        "small_long",
        40,
        5,
    )
    assert main(["config", "--config", f"{tmp_path}/gone.yaml"]) == 2
    assert "gone.yaml: got 'No such file" in capsys.readouterr().err


def test_ranks_get_what_a_file_says_as_plain_overrides(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("train.steps: 30\nlaunch.nproc: 1\n")
    started = []
    monkeypatch.setattr("launch.local.become", lambda start: started.append(start.command) or 0)
    main(["train", "--config", "mine.yaml", "seed=3"])
    assert started[0][-3:] == ("train.steps=30", "launch.nproc=1", "seed=3")
