"""A run that is continued has the settings it had but for what is typed; weights bring their model along."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from conf.compose import compose, dump, to_dict
from conf.continued import compose_run, overrides_of
from conf.errors import ConfigError
from conf.reading.convert import flat, nested
from conf.reading.setting_files import settings_text

FIRST = (
    "model=small_long", "optim=adafactor", "parallel.zero=0", "moe.capacity_factor=2.0", "train.steps=200",
    "launch.nproc=4", "schedule.lr=0.01",
)  # fmt: skip


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def begin(folder, *words, record=True, world=None):
    """The folder of a run that was started with `words`, as its rank 0 writes it."""
    words = [*words, f"name={folder.name}"]
    cfg = compose_run(words, world=world)
    kept = settings_text(overrides_of(words))
    folder.mkdir(parents=True, exist_ok=True)
    dump(cfg, folder / "config.yaml")
    if record:
        (folder / "overrides.yaml").write_text(kept)
    return cfg


@pytest.mark.parametrize("record", [True, False], ids=["record", "older"])
def test_only_what_is_typed_changes_and_what_follows_from_it(runs, record):
    before = begin(runs / "mine", *FIRST, record=record)
    assert compose_run(["name=mine"]) == before
    after = compose_run(["name=mine", "train.steps=2000"])
    assert (after.train.steps, after.train.eval_every, after.train.save_every) == (2000, 200, 500)
    assert after.schedule.warmup_steps == 200
    expected = replace(
        before,
        train=replace(before.train, steps=2000, eval_every=200, save_every=500),
        schedule=replace(before.schedule, warmup_steps=200),
    )
    assert after == expected


@pytest.mark.parametrize("record", [True, False], ids=["record", "older"])
def test_intervals_that_were_typed_stay(runs, record):
    begin(runs / "mine", "train.steps=200", "train.eval_every=7", "schedule.warmup_steps=3", record=record)
    after = compose_run(["name=mine", "train.steps=2000"])
    assert (after.train.eval_every, after.schedule.warmup_steps, after.train.save_every) == (7, 3, 500)


def test_a_typed_value_that_would_follow_anyway_stays_too(runs):
    begin(runs / "mine", "train.steps=200", "train.eval_every=20", "launch.nproc=2")
    after = compose_run(["name=mine", "train.steps=2000"])
    assert after.train.eval_every == 20
    assert overrides_of(["name=mine", "train.steps=3"]) == ["train.eval_every=20", "launch.nproc=2", "train.steps=3"]


def test_what_was_typed_in_between_is_kept_as_well(runs):
    begin(runs / "mine", *FIRST)
    begin(runs / "mine", "train.steps=300", "train.log_every=3")
    after = compose_run(["name=mine", "train.steps=400"])
    assert (after.train.steps, after.train.log_every, after.launch.nproc, after.optim.name) == (400, 3, 4, "adafactor")


def test_the_launcher_and_its_ranks_come_to_the_same(runs):
    begin(runs / "mine", *FIRST)
    words = ["name=mine", "train.steps=900"]
    assert compose_run(words, world=(4, 4)) == compose_run(words)


def test_the_ranks_that_were_started_count_more_than_those_that_were_typed_before(runs):
    begin(runs / "mine", *FIRST)
    cfg = compose_run(["name=mine"], world=(2, 2))
    assert (cfg.launch.nproc, cfg.parallel.ep) == (2, 2)
    begin(runs / "mine", world=(2, 2))
    assert compose_run(["name=mine"]).launch.nproc == 4  # what was typed is not forgotten
    with pytest.raises(ConfigError, match="needs 2 ranks in all"):
        compose_run(["name=mine", "launch.nproc=4"], world=(2, 2))


def test_experts_follow_a_layout_that_is_typed_anew(runs):
    begin(runs / "mine", "launch.nproc=4")
    cfg = compose_run(["name=mine", "parallel.tp=2"])
    assert (cfg.parallel.tp, cfg.parallel.ep, cfg.parallel.etp) == (2, 2, 2)


def test_a_preset_that_is_typed_again_changes_nothing_and_another_one_only_its_own(runs):
    before = begin(runs / "mine", *FIRST, "model.dropout=0.1")
    assert compose_run(["name=mine", "model=small_long", "optim=adafactor"]) == before
    cosine = compose_run(["name=mine", "schedule=cosine"])
    assert (cosine.schedule.name, cosine.schedule.min_lr_ratio, cosine.schedule.lr) == ("cosine", 0.1, 0.01)
    assert cosine.model == before.model
    assert compose_run(["name=mine", "model=small"]).model.preset == "small"  # for the checkpoint's check to refuse


def test_what_stands_in_the_folder_counts_not_what_presets_say_today(runs):
    begin(runs / "mine", *FIRST)
    path = runs / "mine/config.yaml"
    tree = yaml.safe_load(path.read_text())
    tree["model"]["norm_epsilon"], tree["data"]["files"] = 1e-5, []
    path.write_text(yaml.safe_dump(tree))
    assert compose_run(["name=mine"]).model.norm_epsilon == 1e-5
    assert compose_run(["name=mine", "model.norm_epsilon=1e-6"]).model.norm_epsilon == 1e-6


def test_relative_files_mean_those_of_the_first_start(runs, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("text")
    begin(runs / "mine", "data=text", "data.files=a.txt")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    cfg = compose_run(["name=mine", f"runs_dir={runs}"])
    assert cfg.data.files == (str(tmp_path / "a.txt"),)


def test_permissions_of_one_start_are_not_kept(runs):
    begin(runs / "mine", "train.resume=never", "train.allow_data_change=true")
    cfg = compose_run(["name=mine"])
    assert (cfg.train.resume, cfg.train.allow_data_change) == ("auto", False)


def test_a_new_name_is_a_new_run(runs):
    begin(runs / "mine", *FIRST)
    assert compose_run(["name=other"]) == replace(compose([]), name="other")
    assert compose_run([]) == compose([])
    assert overrides_of(["name=other", "seed=3"]) == ["seed=3"]


def test_settings_of_a_run_serve_another_one(runs):
    before = begin(runs / "mine", *FIRST)
    assert compose_run(["--config", str(runs / "mine/overrides.yaml"), "name=other"]) == replace(before, name="other")


@pytest.mark.parametrize("record", [True, False], ids=["record", "older"])
def test_weights_bring_model_moe_and_tokenizer_along(runs, record):
    origin = begin(runs / "origin", *FIRST, "model.dropout=0.1", "moe.top_k=1", record=record)
    (runs / "origin/tokenizer.model").write_text("pieces")
    cfg = compose_run(["train.from_checkpoint=runs/origin", "train.global_batch=32"])
    assert cfg.model == origin.model
    assert cfg.moe == origin.moe
    assert cfg.data.tokenizer == str(runs / "origin/tokenizer.model")
    assert (cfg.data.sentinels, cfg.data.tokenizer_vocab) == (20, 512)
    assert (cfg.optim.name, cfg.schedule.lr, cfg.launch.nproc) == ("adamw", 0.004, 2)  # not the rest
    other = compose_run(["train.from_checkpoint=runs/origin", "model.dropout=0.3", "moe=flaxformer"])
    assert (other.model.dropout, other.model.d_ff, other.moe.semantics) == (0.3, origin.model.d_ff, "flaxformer")
    assert other.moe.capacity_factor == 2.0


def test_a_run_that_began_from_weights_goes_on_without_them(runs):
    begin(runs / "origin", *FIRST)
    (runs / "origin/tokenizer.model").write_text("pieces")
    began = begin(runs / "mine", "train.from_checkpoint=runs/origin", "moe.jitter=0.0")
    assert compose_run(["name=mine"]) == began
    (runs / "origin").rename(runs / "gone")
    with pytest.raises(Exception, match="from_checkpoint"):
        compose_run(["name=mine"])  # it has no checkpoint of its own
    (runs / "mine/checkpoints/step_00000001").mkdir(parents=True)
    (runs / "mine/tokenizer.model").write_text("pieces")
    cfg = compose_run(["name=mine"])
    assert (cfg.train.from_checkpoint, cfg.data.tokenizer) == (None, str(runs / "mine/tokenizer.model"))
    assert (cfg.model, cfg.moe) == (began.model, began.moe)


def test_one_checkpoint_of_a_run_brings_the_same_along(runs):
    origin = begin(runs / "origin", *FIRST)
    step = runs / "origin/checkpoints/step_00000001"
    step.mkdir(parents=True)
    (step / "manifest.json").write_text("{}")
    assert compose_run([f"train.from_checkpoint={step}"]).model == origin.model


def test_flat_and_nested_undo_each_other():
    tree = to_dict(compose([]))
    assert nested(flat(tree)) == tree


def test_a_secret_that_a_variable_holds_is_looked_up_again(runs, monkeypatch):
    monkeypatch.setenv("GITHUB_PAT", "c4n4ry-value")
    before = begin(runs / "mine", "data.text_field=a-c4n4ry-value", "logging.wandb_entity=${oc.env:GITHUB_PAT}")
    assert "c4n4ry" not in "".join(file.read_text() for file in (runs / "mine").iterdir())
    assert compose_run(["name=mine"]) == before
    monkeypatch.setenv("GITHUB_PAT", "c4n4ry-renewed")
    assert compose_run(["name=mine"]).data.text_field == "a-c4n4ry-renewed"
    monkeypatch.delenv("GITHUB_PAT")
    with pytest.raises(ConfigError, match="GITHUB_PAT"):
        compose_run(["name=mine"])


@pytest.mark.parametrize("record", [True, False], ids=["record", "older"])
def test_a_secret_that_only_the_setting_held_is_asked_for(runs, record):
    before = begin(runs / "mine", "data.text_field=https://me:c4n4ry@host", "train.steps=200", record=record)
    with pytest.raises(ConfigError, match=r"^data\.text_field: got .*redacted.*; needs its value once more"):
        compose_run(["name=mine", "train.steps=300"])
    assert compose_run(["name=mine", "data.text_field=https://me:c4n4ry@host"]) == before


def test_numbers_and_rows_of_tables_are_no_secrets(runs, monkeypatch):
    monkeypatch.setenv("BUILD_KEY", "20000000")
    monkeypatch.setenv("TASK_KEY", "span_corruption")
    before = begin(runs / "mine", "train.tokens=20000000", "data.task=span_corruption")
    assert compose_run(["name=mine"]) == before
