"""What a message says to try can be pasted: no value in it is more than a word to a shell."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.cli import main
from launch.commands.known import complete_run
from tests.launch.shells import Shell

HOSTILE = "$(touch ran)`touch ran`;touch ran"
LINES = (
    ["train", f"--runs_dir={HOSTILE}"],
    ["train", f"--{HOSTILE}=1"],
    ["train", f"data.files=[a'{HOSTILE}'"],
    ["train", f"train.steps='{HOSTILE}"],
    ["train", f"name={HOSTILE}"],
    ["train", f"launch.rdzv_endpoint={HOSTILE}"],
    ["train", f"model={HOSTILE}"],
    ["train", f"moe.router={HOSTILE}"],
    ["train", f"launch.slurm_time={HOSTILE}"],
    ["train", f"{HOSTILE}=1"],
    [f"x={HOSTILE}"],
    ["eval", "runs/mine $(touch ram)"],
    ["bench", HOSTILE],
    ["import-hf", "model$(touch ran)"],
)


@pytest.mark.parametrize("words", LINES, ids=lambda words: " ".join(words))
def test_pasting_a_hint_runs_nothing_else(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shell = Shell(tmp_path)
    for folder in ("runs/mine $(touch ran)", "runs/model$(touch ran)", "model$(touch ran)"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.yaml").touch()
    assert main(words) == 2
    for line in capsys.readouterr().err.splitlines():
        hint = line.partition("; try ")[2]
        # a hint may be a sentence, which a shell does not parse; what is in it would still run
        shell.run(f": {hint}\n")
        shell.run(f"pointsman train {hint}\n")
    assert not list(tmp_path.rglob("ran"))


def test_a_run_that_a_shell_would_not_take_literally_is_not_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "m$(touch ran)", "m n"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.yaml").touch()
    assert [item.value for item in complete_run("runs/m")] == ["runs/mine"]
