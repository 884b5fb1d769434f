"""`generate` on an imported model: the settings it came with are followed, and what is typed wins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from conf.errors import ConfigError
from data.text.train_tokenizer import train_tokenizer
from launch import cli
from model.generate import GenerateOptions, generate
from tests.model.hf.folders import SWITCH, T5, folder_of
from trainer.commands.arguments import Decoding
from trainer.commands.filling import pad_ids
from trainer.commands.import_hf import import_run
from trainer.commands.trained import TrainedModel, load

TASK = {"num_beams": 3, "length_penalty": 2.0, "max_length": 12, "min_length": 8, "no_repeat_ngram_size": 2,
        "early_stopping": True, "prefix": "say: "}  # fmt: skip
TEXTS = ["a cab", "bad egg feed"]


def run_of(tmp_path: Path, config: dict[str, Any], generation: dict[str, Any] | None = None) -> Path:
    theirs = folder_of(tmp_path / "theirs", {**config, "task_specific_params": {"talk": TASK}})
    lines = ["a bad cab", "feed a face", "say: cage fig", "abc def ghi: jays"] * 9
    (theirs / "spiece.model").write_bytes(train_tokenizer(lines, pieces=24))
    if generation is not None:
        (theirs / "generation_config.json").write_text(json.dumps(generation))
    return import_run(theirs, runs_dir=tmp_path, name="run", overrides=["data.sentinels=20"])


def by_hand(model: TrainedModel, texts: list[str], **options: Any) -> list[list[int]]:
    """The texts in one batch, by the options of the generator."""
    ids_BL = pad_ids([[*model.tokenizer.encode(text), 1] for text in texts], torch.device("cpu"))
    found = generate(model.module, ids_BL, options=GenerateOptions(**options, known_ids=44))  # type: ignore[arg-type]
    return [[token for token in row if token > 1] for row in found.tokens_BT.tolist()]


def test_a_task_brings_its_prefix_and_its_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(tmp_path, T5)
    assert "--task talk" in capsys.readouterr().out
    model = load(run)
    prefixed = [f"say: {text}" for text in TEXTS]
    talk: dict[str, Any] = {
        "mode": "beam", "beams": 3, "length_penalty": 2.0, "length_rule": "power", "early_stopping": "true",
        "max_length": 11, "min_length": 7, "no_repeat_ngram": 2,
    }  # fmt: skip
    expected = by_hand(model, prefixed, **talk)
    assert model.generate_ids(TEXTS, task="talk") == expected
    assert cli.run(["generate", str(run), *TEXTS, "--task", "talk", "--ids"]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [" ".join(map(str, ids)) for ids in expected]
    assert "the model's own settings for talk: max_length 12, min_length 8, num_beams 3" in printed.err
    assert model.generate_ids(TEXTS, task="talk", beams=1, max_length=5) == by_hand(
        model, prefixed, max_length=5, min_length=4, no_repeat_ngram=2
    ), "what is typed wins, and the least length gives way to a shorter text"
    assert model.generate_ids(TEXTS) == by_hand(model, TEXTS, max_length=128)


def test_settings_of_the_checkpoint_hold_without_a_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(tmp_path, T5, {"max_new_tokens": 6, "num_beams": 2, "repetition_penalty": 1.4, "num_beam_groups": 2})
    said = capsys.readouterr().out
    assert "follows its generation settings: max_new_tokens 6, num_beams 2, repetition_penalty 1.4" in said
    assert "not supported, and not followed: num_beam_groups 2" in said
    model = load(run)
    options: dict[str, Any] = {"max_length": 6, "repetition_penalty": 1.4}
    searched = {"mode": "beam", "beams": 2, "length_penalty": 1.0, "length_rule": "power", "early_stopping": "false"}
    assert model.generate_ids(TEXTS) == by_hand(model, TEXTS, **options, **searched)
    assert model.generate_ids(TEXTS, beams=1) == by_hand(model, TEXTS, **options)
    sampled = model.generate_ids(TEXTS[:1], sample=True, seed=3)
    assert sampled == by_hand(model, TEXTS[:1], **options, mode="sample", seed=3, top_k=50), "instead of its beams"
    assert cli.run(["export-hf", str(run), str(tmp_path / "again")]) == 0
    written = json.loads((tmp_path / "again" / "generation_config.json").read_text())
    assert written["num_beam_groups"] == 2
    assert written["max_new_tokens"] == 6
    assert json.loads((tmp_path / "again" / "config.json").read_text())["task_specific_params"] == {"talk": TASK}


def test_an_absolute_capacity_binds_in_generation_as_in_the_library(tmp_path: Path) -> None:
    model = load(run_of(tmp_path, {**SWITCH, "expert_capacity": 1}))
    dropping = by_hand(model, TEXTS, max_length=10, routing="eval")
    assert model.generate_ids(TEXTS, max_length=10) == dropping
    assert dropping != by_hand(model, TEXTS, max_length=10), "otherwise nothing is dropped"


def test_a_task_that_is_not_there(tmp_path: Path) -> None:
    model = load(run_of(tmp_path, T5))
    with pytest.raises(ConfigError, match="--task: got 'sing'; needs one of talk"):
        model.generate_ids(TEXTS, task="sing")


def test_what_holds_where_nothing_is_typed() -> None:
    plain = Decoding().options(max_length=64)
    assert (plain.mode, plain.max_length, plain.length_rule, plain.top_k) == ("greedy", 64, "gnmt", None)
    own = {"beams": 4, "min_length": 29, "top_k": 50}
    short = Decoding(max_length=10).options(max_length=64, own=own)
    assert (short.mode, short.max_length, short.min_length) == ("beam", 10, 9)
    with pytest.raises(ConfigError, match=r"generate\.min_length: got 10"):
        Decoding(max_length=10, min_length=10).options(max_length=64)
    assert Decoding(sample=True).options(max_length=64, own=own).mode == "sample"
    assert Decoding(sample=False).options(max_length=64, own={"sample": True}).mode == "greedy"
