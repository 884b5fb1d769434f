"""Strict conversion of dictionaries: nothing missing, unknown or silently cast."""

from __future__ import annotations

import copy

import pytest

from conf.compose import compose
from conf.errors import ConfigError, ConfigErrors
from conf.reading.convert import to_config, to_dict


@pytest.fixture(scope="module")
def plain():
    return to_dict(compose([]))


def changed(plain, path, value):
    tree = copy.deepcopy(plain)
    section, _, name = path.rpartition(".")
    (tree[section] if section else tree)[name] = value
    return tree


def test_there_and_back(plain):
    assert to_dict(to_config(plain)) == plain


@pytest.mark.parametrize(
    ("path", "value", "becomes"),
    [
        ("schedule.lr", 1, 1.0),
        ("data.files", "a.txt, b.txt", ("a.txt", "b.txt")),
        ("data.files", ["a,b.txt"], ("a,b.txt",)),
        ("train.tokens", None, None),
        ("parallel.zero", 2, 2),
    ],
)
def test_the_few_conversions_that_are_made(plain, path, value, becomes):
    section, _, name = path.rpartition(".")
    converted = getattr(getattr(to_config(changed(plain, path, value)), section), name)
    assert converted == becomes
    assert type(converted) is type(becomes)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("train.steps", True),
        ("train.steps", "8"),
        ("train.steps", 8.0),
        ("schedule.lr", "0.1"),
        ("schedule.lr", float("inf")),
        ("schedule.lr", None),
        ("model.tie_embeddings", 0),
        ("model.preset", 5),
        ("data.files", [1]),
        ("data.files", {"a": 1}),
        ("parallel.zero", 1.0),
        ("parallel.zero", "1"),
        ("train.precision", "FP32"),
        ("model", None),
        ("model", [1]),
    ],
)
def test_anything_else_is_refused_by_name(plain, path, value):
    with pytest.raises(ConfigError) as caught:
        to_config(changed(plain, path, value))
    assert caught.value.field == path
    assert caught.value.got == value
    assert caught.value.hint


def test_missing_and_unknown_fields_are_all_listed(plain):
    tree = copy.deepcopy(plain)
    tree["moe"]["num_expert"] = tree["moe"].pop("num_experts")
    del tree["launch"]
    with pytest.raises(ConfigErrors) as caught:
        to_config(tree)
    assert [error.field for error in caught.value.errors] == ["moe.num_expert", "moe.num_experts", "launch"]


@pytest.mark.parametrize("path", ["data.files", "model.preset", "seed"])
def test_a_target_is_refused_however_deep(plain, path):
    with pytest.raises(ConfigError, match="never runs code") as caught:
        to_config(changed(plain, path, [{"deep": {"_target_": "os.system"}}]))
    assert caught.value.field == f"{path}.0.deep._target_"
