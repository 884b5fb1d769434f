"""Configurations of older releases are read as today's, those of newer ones refused."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml

from conf.compose import compose, dump, load, restore, to_dict, written
from conf.derived.layers import is_dense
from conf.errors import ConfigError, ConfigErrors
from conf.reading.convert import flat
from conf.reading.fields import leaf_types
from conf.reading.formats import ADDED, CHANGES, FORMAT, hint_for, modern
from tests.conf.composed import composed


def oldest(*overrides: str) -> dict:
    """What a release before there were formats wrote for a run of these settings."""
    tree = copy.deepcopy(to_dict(composed(*overrides)))
    optim = tree["optim"]
    optim["relative_step"] = optim.pop("scale_parameter")
    for added in ADDED:
        section, _, name = added.field.partition(".")
        del tree[section][name]
    return tree


@pytest.mark.parametrize("scaled", [True, False])
def test_the_oldest_format_gives_the_same_run(tmp_path, scaled):
    settings = ("optim=adafactor", "parallel.zero=0", f"optim.scale_parameter={str(scaled).lower()}")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(oldest(*settings)))
    assert load(tmp_path / "config.yaml") == composed(*settings)
    assert load(tmp_path / "config.yaml", overrides=["train.eval_batches=3"]).optim.scale_parameter is scaled


def test_what_is_written_today_says_its_format_and_reads_back(tmp_path):
    dump(composed(), tmp_path / "config.yaml")
    tree = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert tree["format"] == FORMAT
    assert tree == written(composed())
    assert restore(tree, origin="here") == composed()


@pytest.mark.parametrize("number", [FORMAT + 1, "1", -1, True, None])
def test_a_newer_format_is_refused_in_one_sentence(number):
    with pytest.raises(
        ConfigError, match=f"^runs/x: got 'a configuration of format {number}'; needs .*{FORMAT}"
    ) as caught:
        restore({**to_dict(composed()), "format": number}, origin="runs/x")
    assert "\n" not in str(caught.value)


def test_a_format_of_today_has_no_old_names():
    with pytest.raises(ConfigErrors, match=r"optim\.relative_step"):
        restore({**oldest(), "format": FORMAT}, origin="here")


def test_what_is_read_is_left_as_it_was():
    tree = oldest()
    before = copy.deepcopy(tree)
    modern(tree, origin="here")
    assert tree == before


def test_rows_name_fields_that_are_gone_and_fields_that_are_there():
    assert not {change.old for change in CHANGES} & set(leaf_types())
    assert {added.field for added in ADDED} <= set(leaf_types())
    assert all(1 <= row.since <= FORMAT for row in (*CHANGES, *ADDED))


def test_an_old_name_that_is_typed_gets_the_new_one():
    with pytest.raises(ConfigError, match=r"^optim\.relative_step: .*try optim\.scale_parameter$"):
        compose(["optim.relative_step=false"])
    assert hint_for("train.steps") is None


OLD = Path(__file__).with_name("format_0.yaml")


def test_a_file_of_a_release_without_formats_is_read_as_the_run_it_was():
    words = (
        "name=dense", "moe=dense", "launch.nproc=2", "train.steps=6", "train.eval_every=0", "train.eval_batches=1",
        "train.save_every=3", "train.fill_samples=1", "data.cache_dir=cache", "logging.wandb_project=pointsman",
    )  # fmt: skip
    assert load(OLD) == compose(words)
    assert is_dense(load(OLD))


def test_every_field_that_old_files_lack_has_a_row():
    """Whoever adds a field says at which value a run does what it did before."""
    old = flat(modern(yaml.safe_load(OLD.read_text()), origin="here"))
    assert old.keys() == leaf_types().keys()


@pytest.mark.parametrize(("kind", "dense"), [("dense", True), ("switch", False)])
def test_models_said_themselves_whether_they_have_experts(kind, dense):
    tree = oldest("parallel.ep=1")
    tree["model"]["moe"] = kind
    assert is_dense(restore(tree, origin="here")) is dense
    assert restore(tree, origin="here").moe.sparse_every == (0 if dense else 2)
