"""The benchmarks of what surrounds a step measure what they say; their times are not judged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conf.compose import compose
from data.prepare import prepare_data
from measure.speed.around import pipeline, start
from measure.speed.setup import Settings
from parallel.mesh.axes import single_process

CPU = torch.device("cpu")


def test_a_batch_of_the_data_is_held_against_the_step_that_takes_it(tmp_path: Path, monkeypatch) -> None:
    text = tmp_path / "a.jsonl"
    text.write_text(
        "".join(json.dumps({"text": f"the quick brown fox number {n} jumps " * 8}) + "\n" for n in range(90))
    )
    words = (
        "data=text",
        f"data.files={text}",
        f"data.cache_dir={tmp_path}",
        "data.tokenizer_vocab=44",
        "data.validation_fraction=0.2",
        "data.sentinels=10",
        "data.encoder_length=24",
        "data.workers=2",
        "model.vocab_size=54",
        "model.d_model=16",
        "train.global_batch=8",
        "launch.nproc=1",
        "parallel.ep=1",
    )
    cfg = compose(words, world=(1, 1))
    prepare_data(cfg, progress=lambda text: None)
    taken = []
    right = pipeline.build_loader

    def loader(corpus, cfg, **share):
        taken.append(cfg.data.workers)
        return right(corpus, cfg, **share)

    monkeypatch.setattr(pipeline, "build_loader", loader)
    (row,) = pipeline.run(Settings(cfg=cfg, overrides=words, device=CPU, rounds=2, threads=1), single_process())
    assert taken == [0], "batches ready in a worker's queue would cost nothing"
    assert row.case == "a rank's batch of 8 windows, data=text"
    positions = 8 * (cfg.data.encoder_length + cfg.data.decoder_length)
    assert row.numbers["tokens/s of one process"] == pytest.approx(positions / row.comparison.ours_seconds)


def test_every_start_is_a_process_that_ends_well(monkeypatch) -> None:
    started: list[list[str]] = []

    def run(command: list[str], **settings: object) -> None:
        assert settings["check"], "one that fails is not timed"
        started.append(command)

    monkeypatch.setattr(subprocess, "run", run)
    rows = list(start.run(Settings(cfg=compose(()), overrides=(), device=CPU, rounds=3, threads=1)))
    assert [row.case for row in rows] == ["pointsman --help", "pointsman config", "what a rank imports"]
    assert len(started) == len(rows) * 2 * (2 + 3)
    assert all(command[0] == sys.executable for command in started)
