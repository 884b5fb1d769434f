"""Layouts as typed, completed, multiplied out and refused."""

import re
from dataclasses import replace

import pytest

from conf.compose import compose
from conf.errors import ConfigError
from measure.verify.planning.layouts import (
    Layout,
    apply,
    complete,
    least_ranks,
    own_layout,
    product,
    read_keys,
    split_valid,
)
from tests.measure.verify.tiny import TINY

OWN = Layout(tp=1, dp=1, ep=1, etp=1, zero=1, accumulation=2, recompute=True)


def test_settings_left_out_are_one_or_the_configurations():
    layout = complete(read_keys("tp=2 ep=2"), ranks=4, own=OWN)
    assert layout == Layout(tp=2, dp=2, ep=2, etp=2, zero=1, accumulation=2, recompute=True)


def test_other_spellings():
    typed = read_keys("tp=2, etp=1 zero=0 acc=4 recompute=false ranks=2")
    assert complete(typed, ranks=8, own=OWN) == Layout(
        tp=2, dp=1, ep=1, etp=1, zero=0, accumulation=4, recompute=False
    )  # fmt: skip
    assert read_keys("recompute")["recompute"] == 1
    assert [read_keys(text)["compile"] for text in ("compile", "compile=model", "compile=off")] == [1, 2, 0]
    assert complete(read_keys("compile=model"), ranks=1, own=OWN).compile == "model"
    assert read_keys("accumulation=2") == read_keys("accum=2")


@pytest.mark.parametrize(
    "text", ["pp=2", "tp=0", "tp=two", "zero=3", "recompute=maybe", "compile=2", "compile=all", "tp", "tp=-1"]
)
def test_what_is_no_setting_is_refused(text):
    with pytest.raises(ConfigError, match="--layouts"):
        read_keys(text)


@pytest.mark.parametrize(
    ("text", "ranks", "told"),
    [
        ("tp=3", 4, "a tp that divides 4 ranks: 1, 2, 4; try 'tp=3 dp=1'"),
        ("tp=2 dp=4", 4, "at most 4 ranks; try --ranks 8"),
        ("tp=4", 2, "at most 2 ranks; try --ranks 4"),
        ("tp=2 ranks=3", 4, "a tp that divides 3 ranks: 1, 3; try"),
        ("tp=2 dp=1 ranks=3", 4, "tp * dp = 3 ranks; try"),
    ],
)
def test_layouts_that_do_not_fit_the_ranks(text, ranks, told):
    with pytest.raises(ConfigError, match=re.escape(told)):
        complete(read_keys(text), ranks=ranks, own=OWN)


@pytest.mark.parametrize(
    ("text", "ranks"), [("", 1), ("tp=2", 2), ("tp=2 ep=2", 4), ("tp=2 ep=2 etp=1", 2), ("dp=3", 3), ("tp=2 ep=4", 8)]
)
def test_fewest_ranks(text, ranks):
    assert least_ranks(read_keys(text)) == ranks


def test_the_product_holds_every_layout_once():
    found = list(product(4, experts=True, accumulations=(1, 2)))
    assert len(found) == len(set(found))
    expected = {
        (tp, dp, ep, etp)
        for tp in (1, 2, 4) for dp in (1, 2, 4) for etp in {1, tp} for ep in (1, 2, 4)
        if tp * dp in (1, 2, 4) and tp * dp % (etp * ep) == 0
    }  # fmt: skip
    assert {(each.tp, each.dp, each.ep, each.etp) for each in found} == expected
    assert len(found) == len(expected) * 3 * 2 * 2


def test_a_dense_model_has_no_expert_axes():
    assert {(each.ep, each.etp == each.tp) for each in product(4, experts=False)} == {(1, True)}


def test_a_layout_survives_the_configuration():
    cfg = compose([*TINY, "launch.nproc=1", "parallel.ep=1"])
    for layout in product(4, experts=True):
        assert own_layout(apply(cfg, layout)) == layout


def test_refused_layouts_carry_the_reason():
    cfg = compose([*TINY, "launch.nproc=1", "parallel.ep=1"])
    good = Layout(tp=2, dp=2, ep=2, etp=2, zero=2, accumulation=2, recompute=False)
    heads, experts, batch = replace(good, tp=8, etp=8, dp=1, ep=1), replace(good, ep=8, dp=8), replace(good, dp=16)
    valid, refused = split_valid(cfg, [good, heads, experts, batch])
    assert valid == [good]
    assert [each.layout for each in refused] == [str(heads), str(experts), str(batch)]
    for each, field in zip(refused, ("model.num_heads", "moe.num_experts", "train.global_batch"), strict=True):
        assert each.reason.startswith(field), each


def test_adafactor_is_refused_beyond_zero_0():
    cfg = compose([*TINY, "optim=adafactor", "parallel.zero=0", "launch.nproc=1", "parallel.ep=1"])
    layout = Layout(tp=1, dp=2, ep=1, etp=1, zero=0, accumulation=1, recompute=False)
    valid, refused = split_valid(cfg, [layout, replace(layout, zero=1)])
    assert valid == [layout]
    assert "parallel.zero" in refused[0].reason
