"""Generation settings of a checkpoint: read, turned into options, named where they cannot be followed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from conf.errors import CheckpointError, ConfigError
from model.hf.generation import (
    DEFAULTS,
    FILE,
    TASKS,
    Generation,
    generation_of,
    our_options,
    read_generation,
    unsupported,
)

SUMMARIES = {
    "early_stopping": True, "length_penalty": 2.0, "max_length": 200, "min_length": 30, "no_repeat_ngram_size": 3,
    "num_beams": 4, "prefix": "summarize: ",
}  # fmt: skip


def folder_with(folder: Path, config: dict[str, Any], generation: dict[str, Any] | None = None) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (folder / FILE).write_text(json.dumps(generation))
    return folder


def test_a_task_of_the_first_t5(tmp_path: Path) -> None:
    found = read_generation(folder_with(tmp_path, {TASKS: {"summarization": SUMMARIES}}))
    assert our_options(found.settings("summarization")) == {
        "length_rule": "power", "early_stopping": "true", "length_penalty": 2.0, "max_length": 199, "min_length": 29,
        "no_repeat_ngram": 3, "beams": 4, "prefix": "summarize: ", "sample": False, "top_k": 50,
    }  # fmt: skip
    assert our_options(found.settings(None)) == DEFAULTS
    assert unsupported(found) == []
    with pytest.raises(ConfigError, match="--task: got 'translation'; needs one of summarization"):
        found.settings("translation")


def test_lengths_are_of_new_tokens(tmp_path: Path) -> None:
    generation = {"max_length": 5, "max_new_tokens": 7, "min_length": 4, "min_new_tokens": 2}
    found = our_options(read_generation(folder_with(tmp_path, {}, generation)).defaults)
    assert (found["max_length"], found["min_length"]) == (7, 2)
    found = our_options({"max_length": 5, "min_length": 0})
    assert (found["max_length"], found["min_length"]) == (4, 0)


def test_its_own_file_ranks_above_the_model_s(tmp_path: Path) -> None:
    config = {"num_beams": 2, "num_heads": 4, "d_model": 8, "prefix": "say: ", "repetition_penalty": 1.5}
    assert read_generation(folder_with(tmp_path, config)).defaults == {
        "num_beams": 2, "prefix": "say: ", "repetition_penalty": 1.5,
    }  # fmt: skip
    generation = {"max_length": 64, "_from_model_config": True, "transformers_version": "4.57.6"}
    assert read_generation(folder_with(tmp_path, config, generation)).defaults == {"max_length": 64, "prefix": "say: "}


def test_what_is_not_followed_is_named_and_what_has_no_effect_is_not() -> None:
    defaults = {
        "use_cache": True, "typical_p": 1.0, "typical": None, "num_beam_groups": 2, "eos_token_id": [1],
        "forced_bos_token_id": 5, "encoder_no_repeat_ngram_size": 0, "output_scores": True, "do_sample": True,
        "num_beams": 2, "max_length": 9, "pad_token_id": 0,
    }  # fmt: skip
    found = Generation(defaults=defaults, tasks={"x": {"min_p": 0.1, "num_beams": 2}})
    assert unsupported(found) == [
        "num_beam_groups 2", "forced_bos_token_id 5", "do_sample 'with num_beams'", "min_p 0.1 (task x)",
    ]  # fmt: skip
    assert our_options(defaults)["sample"] is False
    # Without a cache the library's Switch routes what it has written once more at every step, and drops more of it.
    assert unsupported(Generation(defaults={"use_cache": False}, tasks={})) == ["use_cache False"]
    assert unsupported(Generation(defaults={"eos_token_id": [1, 7]}, tasks={})) == ["eos_token_id [1, 7]"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_beams", "four"), ("num_beams", 0), ("num_beams", True), ("max_length", 1), ("min_length", -1),
        ("early_stopping", "soon"), ("length_penalty", float("nan")), ("repetition_penalty", 0), ("top_p", 1.5),
        ("bad_words_ids", [[]]), ("bad_words_ids", [3]), ("do_sample", 1), ("prefix", 4), ("temperature", 0),
    ],
)  # fmt: skip
def test_a_setting_of_another_kind_is_refused_by_file_and_name(tmp_path: Path, name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{FILE}: {name}: got"):
        read_generation(folder_with(tmp_path, {}, {name: value}))
    with pytest.raises(ConfigError, match=rf"config\.json: {TASKS}\.say\.{name}: got"):
        read_generation(folder_with(tmp_path, {TASKS: {"say": {name: value}}}, {}))
    state = {"generation": {"defaults": {}, "tasks": {"say": {name: value}}}}
    with pytest.raises(CheckpointError, match=f"here: its generation settings cannot be read .*{name}"):
        generation_of(state, "here")


@pytest.mark.parametrize("stored", [3, [], {}, {"defaults": 3, "tasks": {}}, {"defaults": {}, "tasks": [1]}])
def test_a_state_that_no_import_wrote_is_a_damaged_checkpoint(stored: Any) -> None:
    with pytest.raises(CheckpointError, match="generation settings"):
        generation_of({"generation": stored}, "here")


def test_settings_survive_a_state_and_an_export() -> None:
    found = Generation(defaults={"num_beams": 2, "prefix": "say: "}, tasks={"summarization": SUMMARIES})
    assert generation_of({"generation": json.loads(json.dumps(found.to_json()))}, "here") == found
    assert generation_of({}, "here") is None
    assert found.beside() == ({"num_beams": 2}, {TASKS: {"summarization": SUMMARIES}, "prefix": "say: "})
