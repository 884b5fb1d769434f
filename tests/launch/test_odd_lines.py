"""Two hundred odd command lines: each ends at once, with exit code 2 and a message, and without a traceback."""

from __future__ import annotations

import importlib
import io
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import launch.local
from conf.compose import dump
from launch.cli import main
from tests.conf.composed import composed

SECONDS = 2.0
BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 20))
# One a line, its words apart by blanks; characters beyond ASCII are escaped.
LINES = Path(__file__).with_name("odd_lines.txt").read_text().encode().decode("unicode_escape").splitlines()
LONG = [
    ["train", "train.steps=" + "9" * 5000],
    ["train", "data.files=" + "[" * 2000 + "]" * 2000],
    ["train", "seed=" + "(" * 5000],
    ["train", "name=" + "x" * 5000],
    ["train", "x" * 100_000 + "=1"],
    ["train", "model." + "x" * 1000 + "=1"],
    ["eval", "x" * 5000],
    ["eval", "runs/" + "x/" * 3000],
    ["slurm", "--write", "x" * 5000],
    ["train", "--config", "x" * 5000],
    ["train", "name=a\nb"],
    ["train", "runs_dir=a\x1b[31m"],
    ["train", "data.text_field=a\udcffb"],
    ["train", "train.steps=5\n"],
    ["train", "\n"],
    [""],
    ["train", ""],
    ["train\n"],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files, pipes, runs and models of the names that are used above."""
    root = tmp_path_factory.mktemp("odd")
    (root / "folder").mkdir()
    (root / "a.txt").write_text("text\n")
    (root / "file").write_bytes(b"\xff\xfe\x00")
    for name in ("fifo", "fifo.jsonl"):
        os.mkfifo(root / name)
    (root / "bomb.yaml").write_text(BOMB)
    (root / "deep.yaml").write_text("train: " + "{a: " * 50_000)
    (root / "binary.yaml").write_bytes(bytes(range(256)))
    (root / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    (root / "list.yaml").write_text("- 1\n")
    (root / "keys.yaml").write_text("? {a: b}\n: c\n")
    for name in ("fake", "empty", "pipes"):
        (root / "runs" / name / "checkpoints").mkdir(parents=True)
        dump(composed(), root / "runs" / name / "config.yaml")
    for name in ("bomb", "fifo"):
        (root / "runs" / name).mkdir()
    (root / "runs" / "bomb" / "config.yaml").write_text(BOMB)
    os.mkfifo(root / "runs" / "fifo" / "config.yaml")
    for name in ("overrides-bomb", "overrides-pipe"):
        (root / "runs" / name).mkdir()
        dump(composed(), root / "runs" / name / "config.yaml")
    (root / "runs" / "overrides-bomb" / "overrides.yaml").write_text(BOMB)
    os.mkfifo(root / "runs" / "overrides-pipe" / "overrides.yaml")
    step = root / "runs" / "pipes" / "checkpoints" / "step_00000001"
    step.mkdir()
    os.mkfifo(step / "manifest.json")
    for name, text in (("broken", "{"), ("deep", "[" * 100_000), ("list", "[]"), ("fifo", None)):
        (root / f"hf-{name}").mkdir()
        if text is not None:
            (root / f"hf-{name}" / "config.json").write_text(text)
    os.mkfifo(root / "hf-fifo" / "config.json")
    importlib.import_module("trainer.commands.trained")  # with torch, whose import is not a line's own time
    return root


@pytest.fixture(autouse=True)
def nothing_starts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No line becomes a run, and one that hangs is ended."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("POINTSMAN_DEBUG", "0")
    monkeypatch.setattr(launch.local, "become", lambda start: pytest.fail("ranks were started"))
    monkeypatch.setattr("sys.stdin", io.StringIO())
    composed()
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs", pytrace=True))
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    "words",
    # Every eighth in the quick run; what is dear is the tree of settings, which nearly every line composes.
    [
        pytest.param(words, marks=pytest.mark.slow if number % 8 else ())
        for number, words in enumerate([*(line.split(" ") for line in LINES), *LONG])
    ],
    ids=lambda words: " ".join(words)[:60].encode("ascii", "replace").decode(),
)
def test_an_odd_line_ends_with_a_message(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    began = time.process_time()
    code = main(words)
    seconds = time.process_time() - began
    printed = capsys.readouterr()
    assert code == 2, printed
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert "Traceback" not in printed.err
    assert len(printed.err) < 20_000
    assert seconds < SECONDS
