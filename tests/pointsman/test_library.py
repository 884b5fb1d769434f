"""The examples of docs/library.md, run as they stand there, on a run that is trained here."""

import json
import pydoc_data.topics
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pointsman
from tests.measure.studies.tiny import TINY
from trainer.main import main

PAGE = Path(__file__).resolve().parents[2] / "docs" / "library.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A folder in which runs/first has been trained for two steps."""
    folder = tmp_path_factory.mktemp("library")
    topics = sorted(pydoc_data.topics.topics.items())
    (folder / "topics.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for _, text in topics))
    words = [f"data.files={folder}/topics.jsonl", f"data.cache_dir={folder}/cache", f"runs_dir={folder}/runs"]
    code = main(["name=first", "data=text", *words, *TINY, "train.steps=2", "logging.wandb=off", "parallel.ep=1"])
    assert code == 0
    return folder


def test_the_layer_in_a_plain_training_loop(capsys):
    names = {}
    exec(compile(BLOCKS[0], str(PAGE), "exec"), names)
    history = names["history"]
    assert history[-1] < 0.25 * history[0]
    load = names["losses"].load_E
    assert load.max() < 0.6  # balanced: no expert takes everything
    assert capsys.readouterr().out.startswith(f"{history[0]:.2f} -> {history[-1]:.2f}, load [")


def test_a_trained_run(first, monkeypatch, capsys):
    monkeypatch.chdir(first)
    names = {}
    exec(compile(BLOCKS[1], str(PAGE), "exec"), names)
    out = capsys.readouterr().out
    assert "for " in out
    assert names["measured"].tokens > 0
    assert [layer.name for layer in names["measured"].layers] == ["encoder.1", "decoder.1"]
    model = names["model"]
    assert model.config.train.steps == 2
    assert model.evaluate().tokens == names["measured"].tokens  # train.eval_batches is 2 in the run itself
    assert model.generate_ids(["x"], max_length=3) == model.generate_ids(["x"], max_length=3)


def test_every_block_of_the_page_is_run():
    assert len(BLOCKS) == 2


def test_the_door_is_light_and_says_what_it_has():
    program = "import sys, pointsman; assert not {'torch', 'hydra'} & set(sys.modules); print(pointsman.__version__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert re.match(r"\d+\.\d+", done.stdout)
    with pytest.raises(AttributeError, match="it has SwitchLayer"):
        pointsman.nothing  # noqa: B018
    assert all(getattr(pointsman, name) for name in dir(pointsman))
