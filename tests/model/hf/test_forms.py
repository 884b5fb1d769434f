"""Feed-forward forms of config.json: which are followed, by what names, and what is written back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from conf.errors import ConfigError
from conf.schema import Ffn
from model.hf.config import read_config
from tests.model.hf.folders import SWITCH, T5, folder_of
from trainer.commands.export_hf import export_run
from trainer.commands.import_hf import import_run, open_import


def ffn_of(folder: Path, config: dict[str, Any]) -> str:
    (folder / "config.json").write_text(json.dumps(config))
    return read_config(folder).model["ffn"]


@pytest.mark.parametrize(
    ("keys", "ffn"),
    [
        ({}, "relu"),
        ({"feed_forward_proj": "gelu_new"}, "gelu"),
        ({"feed_forward_proj": "gelu"}, "gelu_erf"),
        ({"feed_forward_proj": "gated-gelu"}, "gated_gelu"),
        ({"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu_new", "is_gated_act": True}, "gated_gelu"),
        ({"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu"}, "gated_gelu_erf"),
        ({"feed_forward_proj": "gated-gelu_new"}, "gated_gelu"),
        ({"feed_forward_proj": "gated-silu", "dense_act_fn": "silu"}, "gated_silu"),
        ({"feed_forward_proj": "gated-swish"}, "gated_silu"),
        ({"feed_forward_proj": "silu"}, "silu"),
        ({"feed_forward_proj": "gated-relu"}, "gated_relu"),
        ({"dense_act_fn": "silu"}, "silu"),
        ({"is_gated_act": True}, "gated_relu"),
    ],
)
def test_activation_and_gate_as_the_library_reads_them(keys: dict[str, Any], ffn: str, tmp_path: Path) -> None:
    assert ffn_of(tmp_path, {**T5, **keys}) == ffn


@pytest.mark.parametrize(
    ("act", "ffn"), [("relu", "relu"), ("gelu_new", "gelu"), ("gelu", "gelu_erf"), ("silu", "silu")]
)
def test_a_switch_has_no_gate(act: str, ffn: str, tmp_path: Path) -> None:
    assert ffn_of(tmp_path, {**SWITCH, "dense_act_fn": act, "feed_forward_proj": "gated-gelu"}) == ffn


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"feed_forward_proj": "mish"}, "feed_forward_proj: got 'mish'"),
        ({"feed_forward_proj": "gated-mish"}, "feed_forward_proj: got 'mish'"),
        ({"feed_forward_proj": "double-gelu"}, "feed_forward_proj: got 'double-gelu'"),
        ({"feed_forward_proj": 3}, "feed_forward_proj: got 3"),
        ({"dense_act_fn": "quick_gelu"}, "dense_act_fn: got 'quick_gelu'"),
        ({"is_gated_act": "yes"}, "is_gated_act: got 'yes'"),
    ],
)
def test_other_forms_are_refused_by_their_key(keys: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"config\.json: {named}"):
        ffn_of(tmp_path, {**T5, **keys})


@pytest.mark.parametrize("ffn", get_args(Ffn))
def test_every_form_comes_back_from_an_export(ffn: str, tmp_path: Path) -> None:
    gated, name = ffn.startswith("gated_"), {"gelu": "gelu_new", "gelu_erf": "gelu"}
    act = ffn.removeprefix("gated_")
    config = {**T5, "feed_forward_proj": "gated-gelu" if gated else "relu", "dense_act_fn": name.get(act, act)}
    run = import_run(folder_of(tmp_path / "theirs", config), runs_dir=tmp_path, name="run")
    folder, _ = export_run(run, None, dtype=torch.float32, shard_bytes=10**9)
    assert open_import(folder).cfg.model.ffn == ffn
    written = json.loads((folder / "config.json").read_text())
    assert written["is_gated_act"] is gated
    if ffn in ("gated_gelu", "gated_silu"):  # as v1.1 and UL2 are published
        assert written["feed_forward_proj"] == {"gated_gelu": "gated-gelu", "gated_silu": "gated-silu"}[ffn]
