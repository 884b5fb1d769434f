"""A task is one file and one row: a toy makes batches, trains, is logged and evaluated; its settings are checked."""

from __future__ import annotations

import importlib
import json
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conf.compose import compose
from conf.errors import ConfigError
from conf.tasks.table import TASKS, window_lengths
from data.corpus import open_corpus
from data.tasks.task import Task, clip, kind_of, text_kind
from data.text.vocabulary import Vocabulary, appended
from launch.cli import main
from tests.data.helpers import steps, text_config
from tests.data.tasks import reversal


@pytest.fixture(autouse=True)
def _rows() -> Iterator[None]:
    """What a test registers is gone after it."""
    before = dict(TASKS)
    yield
    TASKS.clear()
    TASKS.update(before)


def toy_config(tmp_path: Path, *overrides: str):
    reversal.register()
    return text_config(tmp_path, "data.task=reversal", "data.encoder_length=24", *overrides)


@pytest.mark.parametrize("name", TASKS)
def test_every_row_finds_its_task_and_keeps_its_lengths(name: str) -> None:
    assert isinstance(importlib.import_module(TASKS[name].module).TASK, Task)
    data = compose([f"data.task={name}"]).data
    raw, inputs, targets = window_lengths(data)
    pair = importlib.import_module(TASKS[name].module).TASK.make(
        [np.full(raw, 5)], np.array([[0, 0]]), data, appended(data.tokenizer_vocab, data.sentinels)
    )
    assert (np.count_nonzero(pair.inputs_BL), np.count_nonzero(pair.targets_BT)) == (inputs, targets)


def test_a_new_task_makes_the_batches(tmp_path: Path) -> None:
    cfg = toy_config(tmp_path)
    assert cfg.data.decoder_length == 24
    for split in ("train", "validation"):
        for micro in steps(cfg, 2, split=split)[0].micro:
            assert micro.inputs_BL.any()
            for source, target in zip(micro.inputs_BL, micro.targets_BT, strict=True):
                assert source[source > 1].tolist() == target[target > 1].tolist()[::-1]


def test_a_new_task_trains_is_logged_and_is_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from parallel.mesh.axes import single_process
    from trainer.run import run_training

    cfg = toy_config(tmp_path, "launch.nproc=1", "train.steps=12", "train.eval_every=6", "logging.wandb=off")
    cfg = replace(cfg, name="toy", runs_dir=str(tmp_path))
    assert run_training(cfg, single_process(), []) == 0
    rows = [json.loads(line) for line in (tmp_path / "toy" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["eval/loss_frequent"] for row in rows if "eval/loss_frequent" in row]
    assert losses[-1] < losses[0] - 0.1
    assert not any("sentinel" in name for row in rows for name in row)
    said = capsys.readouterr().out
    assert "windows said backwards:" in said
    (line,) = (line for line in said.splitlines() if line.startswith("generate "))
    command, run, text = shlex.split(line)[2:]
    assert (command, run) == ("generate", str(tmp_path / "toy"))
    held_out = steps(cfg, 1, split="validation")[0].micro[0].inputs_BL[0]
    assert text in " ".join(open_corpus(cfg).tokenizer.decode(held_out).split())
    assert len(text) > 20
    assert main(["eval", str(tmp_path / "toy")]) == 0
    assert "frequent tokens" in capsys.readouterr().out
    assert main(["fill", str(tmp_path / "toy"), "a <mask>"]) == 2
    assert "data.task: got 'reversal'; needs span_corruption" in capsys.readouterr().err


def test_an_unknown_task_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"data.task: got 'span_corruptoin'; needs one of span_corruption"):
        compose(["data.task=span_corruptoin"])


def test_the_decoder_must_hold_the_targets_of_a_new_task(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.decoder_length: got 23; needs at least 24"):
        toy_config(tmp_path, "data.decoder_length=23")


def test_kinds_are_told_apart_wherever_the_sentinels_are() -> None:
    ids = np.arange(12)
    scattered = Vocabulary(12, (5, 11, 3))
    assert ids[kind_of(scattered.sentinels).mask(ids)].tolist() == [3, 5, 11]
    assert ids[text_kind(scattered).mask(ids)].tolist() == [2, 4, 6, 7, 8, 9, 10]
    assert ids[text_kind(appended(9, 3)).mask(ids)].tolist() == [2, 3, 4, 5, 6, 7, 8]
    assert not kind_of(()).mask(ids).any()


def test_a_clipped_text_keeps_its_mark_in_the_middle() -> None:
    text = "left " * 40 + "<extra_id_3> " + "right " * 40
    cut = clip(text, 60, mark="<extra_id_3>")
    assert "left <extra_id_3> right" in cut
    assert len(cut) == 64
    assert abs(cut.index("<extra_id_3>") + 6 - 30) <= 1
    assert clip("short\n text", 60, mark="no") == "short text"
    assert clip("<m> " + "x" * 99, 20, mark="<m>").startswith("<m> x")
    assert clip("x" * 99 + " <m>", 20, mark="<m>").endswith("x <m>")
