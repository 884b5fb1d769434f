"""Both studies as a user starts them, on models that train in seconds: run, page, and nothing run twice."""

import json
import os
import pydoc_data.topics
import subprocess
import sys
from pathlib import Path

import pytest

from tests.measure.studies.tiny import TINY


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Overrides that name a small text and a cache for it."""
    folder = tmp_path_factory.mktemp("text")
    topics = sorted(pydoc_data.topics.topics.items())
    (folder / "topics.jsonl").write_text("".join(json.dumps({"text": entry}) + "\n" for _, entry in topics))
    return [*TINY[:-1], "data=text", f"data.files={folder / 'topics.jsonl'}", f"data.cache_dir={folder}"]


def study(*arguments, cwd):
    command = [str(Path(sys.executable).with_name("pointsman")), "study", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def cells(page, label):
    """Cells of the rows of a page whose first cell is `label`."""
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("|")]
    return [row[1:] for row in rows if row[0] == label]


@pytest.mark.slow
def test_headline(text, tmp_path):
    words = ["headline", *text, "--steps", "4", "--eval-every", "2", "--experts", "2", "--seeds", "1"]
    words += ["--warmup", "2", "--rounds", "2", "--markdown", "page.md"]
    assert "2 runs in runs/headline: 0 finished, 2 to do" in study(*words, cwd=tmp_path)
    page = (tmp_path / "page.md").read_text()
    assert len(cells(page, "Switch, 2 experts")) == 3  # sizes, and two tables of losses
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("metrics.jsonl")}
    assert len(written) == 2
    assert "2 finished, 0 to do" in study(*words, cwd=tmp_path)
    assert (tmp_path / "page.md").read_text() == page
    assert {path: path.stat().st_mtime_ns for path in written} == written


@pytest.mark.slow
def test_precision(text, tmp_path):
    words = ["precision", *text, "schedule.warmup_steps=2", "--steps", "4", "--eval-every", "2", "--seeds", "1"]
    study(*words, "--rounds", "2", "--markdown", "page.md", cwd=tmp_path)
    page = (tmp_path / "page.md").read_text()
    assert [row[0] for row in cells(page, "fp32 / bf16 everywhere")] == ["encoder.1", "decoder.1"]
    rows = [json.loads(line) for line in (tmp_path / "runs/precision/fp32-s1/metrics.jsonl").read_text().splitlines()]
    final = [row["eval/loss_text"] for row in rows if "eval/loss_text" in row][-1]
    found = cells(page, "fp32")
    trained = found[0][0]
    evaluated = [row[1] for row in found if row[-1].endswith("%")]
    # the run's own last evaluation, and the study's evaluation of its checkpoint in the precision it was trained in
    assert trained == f"{final:.4f}"
    assert evaluated == [f"{final:.4f}"] * 2
