"""A checkpoint is only continued by the run it belongs to."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from conf.compose import compose, restore
from conf.errors import CheckpointError, ConfigError
from trainer.resume import TrainState, changed_settings, check_same_run, check_same_tokenizer, saved_in
from trainer.run_dir import RunDir


def reader_of(state):
    """A stand-in for the reader of a checkpoint of step 2."""
    return SimpleNamespace(path=Path("step_00000002"), step=2, state=state)


def test_state_round_trip():
    state = TrainState().advanced(tokens=100, wall_s=1.5).advanced(tokens=50, wall_s=0.5)
    cfg = compose([])
    saved = saved_in(reader_of(state.to_json(cfg, {"data": "abc"})))
    assert saved.state == TrainState(step=2, tokens=150, wall_s=2.0)
    assert saved.fingerprints == {"data": "abc"}
    assert saved.config() == cfg
    assert saved.config(["moe.eval_capacity_factor=7"]).moe.eval_capacity_factor == 7


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("step", 3), ("step", True), ("step", "2"), ("tokens", -1), ("tokens", 1.0), ("wall_s", "1"),
        ("wall_s", float("inf")), ("fingerprints", []), ("fingerprints", {"data": 3}), ("config", None), ("config", []),
        ("generation", 5), ("generation", {"defaults": {"num_beams": "x"}, "tasks": {}}),
    ],
)  # fmt: skip
def test_a_state_that_was_never_written_is_a_damaged_checkpoint(key, value):
    state = {"step": 2, "tokens": 0, "wall_s": 0.0, "fingerprints": {"data": "abc"}, "config": {}}
    assert saved_in(reader_of(state)).tree == {}
    with pytest.raises(CheckpointError, match=rf"state\.json: .*{key}|state\.json: its generation"):
        saved_in(reader_of(state | {key: value}))
    if key != "generation":
        del state[key]
        with pytest.raises(CheckpointError, match=f"{key} is missing"):
            saved_in(reader_of(state))


@pytest.mark.parametrize(
    "change", ["train.steps=9999", "schedule.lr=0.5", "logging.wandb=off", "train.log_every=3", "train.accumulation=2"]
)
def test_settings_that_may_change(change):
    check_same_run(compose([]), compose([change]))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ("seed=99", "seed"),
        ("model.d_ff=1024", "model.d_ff"),
        ("moe.capacity_factor=3.0", "moe.capacity_factor"),
        ("train.global_batch=64", "train.global_batch"),
        ("data.noise_density=0.3", "data.noise_density"),
    ],
)
def test_settings_that_make_another_run(change, field):
    with pytest.raises(ConfigError) as caught:
        check_same_run(compose([]), compose([change]))
    assert field in str(caught.value)
    assert "from_checkpoint" in str(caught.value)


def test_changes_that_are_allowed_are_said():
    saved = compose(["train.steps=100"])
    changes = changed_settings(saved, compose(["train.steps=200"]))
    assert "train.steps: 100 -> 200" in changes
    assert "schedule.warmup_steps: 10 -> 20" in changes  # derived from the steps
    assert changed_settings(saved, compose(["train.steps=100"])) == []


def test_a_checkpoint_without_secrets_belongs_to_the_run_with_them(tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_PAT", "c4n4ry-value")
    settings = ["model.preset=mine", "logging.wandb_entity=c4n4ry-value", "data.text_field=https://me:c4n4ry@host"]
    cfg = compose(settings)
    stored = TrainState().to_json(cfg, {})
    assert "c4n4ry" not in json.dumps(stored)
    saved = restore(stored["config"], origin="state.json")
    check_same_run(saved, cfg)
    assert changed_settings(saved, cfg) == []
    monkeypatch.delenv("GITHUB_PAT")  # typed by hand this time
    assert changed_settings(saved, cfg) == []
    other = compose(["model.preset=mine", "data.text_field=https://me:c4n4ry@other", "logging.wandb_entity=x"])
    assert changed_settings(saved, other) == ["data.text_field: https://[redacted]@host -> https://me:c4n4ry@other"]


def test_another_source_needs_permission(tmp_path):
    saved = compose([])
    (tmp_path / "a.txt").touch()
    other = ["data=text", f"data.files={tmp_path / 'a.txt'}"]
    with pytest.raises(ConfigError, match=r"data\.source"):
        check_same_run(saved, compose(other))
    check_same_run(saved, compose([*other, "train.allow_data_change=true"]))


def test_weights_are_refused_for_another_tokenizer(tmp_path):
    saved = saved_in(reader_of(TrainState(step=2).to_json(compose([]), {"tokenizer": "abc"})))
    check_same_tokenizer(saved, "abc", RunDir(root=tmp_path))
    with pytest.raises(ConfigError, match=r"data\.tokenizer=.*tokenizer\.model"):
        check_same_tokenizer(saved, "xyz", RunDir(root=tmp_path))


def test_a_checkpoint_of_an_older_format_belongs_to_the_same_run():
    cfg = compose(["optim=adafactor", "parallel.zero=0"])
    config = json.loads(json.dumps(TrainState().to_json(cfg, {})["config"]))
    del config["format"]
    config["optim"]["relative_step"] = config["optim"].pop("scale_parameter")
    saved = restore(config, origin="here")
    check_same_run(saved, cfg)
    assert changed_settings(saved, cfg) == []
