"""Files of settings: read as if their lines were typed, before what is typed."""

from __future__ import annotations

import pytest

from conf.compose import compose
from conf.errors import ConfigError
from conf.reading.formats import FORMAT
from conf.reading.setting_files import expand, merged, read_settings, settings_text


def test_nested_and_dotted_keys_groups_and_every_kind_of_value(tmp_path, monkeypatch):
    names = ("a b.txt", "it's, {1,2}.txt")
    for name in names:
        (tmp_path / name).write_text("text")
    (tmp_path / "mine.yaml").write_text("""\
model: small_long
train: {steps: 30, tokens: null, activation_checkpointing: true}
schedule.lr: 1e-3
logging.wandb: off
name: 2024
data: text
data.files: [a b.txt, "it's, {1,2}.txt"]
""")
    monkeypatch.chdir(tmp_path)
    cfg = compose(expand(["--config", "mine.yaml"]))
    assert (cfg.model.preset, cfg.train.steps, cfg.train.tokens, cfg.name) == ("small_long", 30, None, "2024")
    assert (cfg.train.activation_checkpointing, cfg.schedule.lr, cfg.logging.wandb) == (True, 1e-3, "off")
    assert cfg.data.files == tuple(str(tmp_path / name) for name in names)
    assert compose(expand(["--config", "mine.yaml", "data.files=*.txt"])).data.files == (str(tmp_path / "*.txt"),)


def test_later_files_win_over_earlier_ones_and_typed_words_over_both(tmp_path):
    (tmp_path / "a.yaml").write_text("train.steps: 1\nseed: 1\nmodel: small_long\n")
    (tmp_path / "b.yaml").write_text("train: {steps: 2, log_every: 2}\n")
    words = expand([f"--config={tmp_path}/a.yaml", "train.log_every=3", "--config", f"{tmp_path}/b.yaml"])
    assert words == ["seed=1", "model=small_long", "train.steps=2", "train.log_every=3"]


def test_a_group_that_is_typed_again_replaces_the_file_s(tmp_path):
    (tmp_path / "a.yaml").write_text("model: small_long")
    assert compose(expand(["--config", f"{tmp_path}/a.yaml", "+model=small"])).model.preset == "small"


@pytest.mark.parametrize(
    ("content", "field", "says"),
    [
        ("model: {_target_: os.system}", "model._target_", "never runs code"),
        ("train.step: 5", "train.step", "try train.steps"),
        ("optim.relative_step: true", "optim.relative_step", "try optim.scale_parameter"),
        ("- 1", "mine.yaml", "a YAML file of settings"),
        ("a: [", "mine.yaml", "a YAML file of settings"),
        ("!!python/object/apply:os.system ['true']", "mine.yaml", "a YAML file of settings"),
        (f"format: {FORMAT + 1}", "mine.yaml", f"format {FORMAT} or older"),
        ("train.steps: [1, 2]", "train.steps", "whole number"),
        ("seed: 1\nname: x\nseed: 2", "mine.yaml", "line 3: seed is given a second time"),
        ("train: {steps: 1, steps: 2}", "mine.yaml", "line 1: steps is given a second time"),
        ("train.steps: 1\ntrain: {steps: 2}", "train.steps", "got '2'; needs one value, and '1' stands there too"),
        ("\n".join(f"a{i}: 1" for i in range(1001)), "mine.yaml", "got '1,001 settings'; needs at most 1,000"),
    ],
)
def test_a_file_is_checked_as_typed_words_are(tmp_path, content, field, says):
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(ConfigError, match=says) as caught:
        compose(expand(["--config", str(tmp_path / "mine.yaml")]))
    assert caught.value.field.endswith(field)


def test_a_file_that_is_not_there_or_not_named():
    with pytest.raises(ConfigError, match=r"^nowhere\.yaml: got 'No such file"):
        expand(["--config", "nowhere.yaml"])
    with pytest.raises(ConfigError, match=r"^--config: got 'nothing'"):
        expand(["train.steps=1", "--config"])


def test_what_a_run_keeps_reads_back_and_says_no_secret(tmp_path, monkeypatch):
    words = [
        "model=small_long",
        "train.steps=30",
        "name=2024",
        "data.files=[a,'b c']",
        "train.tokens=null",
        "moe.top_k=",
    ]
    (tmp_path / "kept.yaml").write_text(settings_text(words))
    assert read_settings(tmp_path / "kept.yaml") == words
    monkeypatch.setenv("HF_TOKEN", "0123456789abcdef")
    assert "0123456789abcdef" not in settings_text(["data.hub_path=https://0123456789abcdef@host"])


def test_what_was_kept_by_an_older_release_is_read_in_today_s_words(tmp_path):
    (tmp_path / "kept.yaml").write_text("format: 0\noptim.relative_step: 'false'\n")
    assert read_settings(tmp_path / "kept.yaml") == ["optim.scale_parameter=false"]


def test_words_that_are_set_anew_are_replaced():
    assert merged(["a=1", "b=1"], ["+a=2", "c=3"]) == ["b=1", "+a=2", "c=3"]
