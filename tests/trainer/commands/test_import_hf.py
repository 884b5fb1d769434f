"""Round trips between runs and Hugging Face folders, and what import says about folders it cannot follow."""

from __future__ import annotations

import json
import math
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from conf import compose
from conf.continued import compose_run
from conf.errors import CheckpointError, ConfigError
from launch import cli
from tests.golden.reader import GOLDEN
from tests.model.hf.folders import KINDS, SWITCH, T5, folder_of, imported, masters
from trainer.commands.export_hf import export_run, parse_size
from trainer.commands.import_hf import UNREAD_FILE, import_run, open_import


@pytest.mark.parametrize("kind", KINDS)
def test_both_directions_are_bit_equal(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = folder_of(tmp_path / "theirs", KINDS[kind])
    run = imported(theirs, tmp_path, "run")
    assert cli.run(["export-hf", str(run), str(tmp_path / "again"), "--shard-size", "4KB"]) == 0
    before, after = load_file(theirs / "model.safetensors"), {}
    for file in (tmp_path / "again").glob("*.safetensors"):
        after |= load_file(file)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = imported(tmp_path / "again", tmp_path, "second")
    ours, twice = masters(run), masters(again)
    assert ours.keys() == twice.keys()
    assert all(torch.equal(ours[name], twice[name]) for name in ours)
    first, second = compose.load(run / "config.yaml"), compose.load(again / "config.yaml")
    assert (first.model, first.moe) == (second.model, second.moe)
    said = capsys.readouterr().out
    assert "pointsman train train.from_checkpoint=" in said
    assert "No tokenizer" in said
    if kind.startswith("switch"):
        assert "compute Switch wrongly" in said
        assert "same in training and evaluation" in said
        assert "i % 3 == 1" in said


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the recorded reference runs (../shared/golden) are absent")
@pytest.mark.parametrize(
    "case", ["hf_switch/step3_layout", "hf_switch/step2_e4_l4_drops_untied", "hf_t5/v10_relu_tied"]
)
def test_recorded_checkpoints_come_back_bit_equal(case: str, tmp_path: Path) -> None:
    run = imported(GOLDEN / case, tmp_path, "run")
    folder, _ = export_run(run, None, dtype=torch.float32, shard_bytes=10**9)
    before, after = load_file(GOLDEN / case / "model.safetensors"), load_file(folder / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    recorded, written = (json.loads((f / "config.json").read_text()) for f in (GOLDEN / case, folder))
    shared = (recorded.keys() & written.keys()) - {"architectures"}
    assert {key: written[key] for key in shared} == {key: recorded[key] for key in shared}


def test_half_precision_weights_come_back_as_they_were(tmp_path: Path) -> None:
    theirs = folder_of(tmp_path / "theirs", T5)
    halved = {name: value.bfloat16() for name, value in load_file(theirs / "model.safetensors").items()}
    save_file(halved, theirs / "model.safetensors")
    folder, _ = export_run(imported(theirs, tmp_path, "run"), None, dtype=torch.bfloat16, shard_bytes=10**9)
    after = load_file(folder / "model.safetensors")
    assert all(after[name].dtype == torch.bfloat16 and torch.equal(after[name], halved[name]) for name in halved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bert"}, "model_type: got 'bert'"),
        ({"router_bias": True}, "router_bias"),
        ({"dense_act_fn": "tanh"}, "dense_act_fn"),
        ({"pad_token_id": 3}, "pad_token_id"),
        ({"num_layers": "three"}, "num_layers"),
        ({"d_model": None}, "d_model"),
        ({"architectures": ["SwitchTransformersModel"]}, "architectures"),
        ({"encoder_sparse_step": -1}, "encoder_sparse_step"),
        ({"architectures": 5}, "architectures"),
        ({"tie_word_embeddings": None}, "tie_word_embeddings"),
        *(({"initializer_factor": x}, r"initializer_factor: got .*from 0 to 1e\+15") for x in (-1.0, 1e308, math.inf)),
        ({"layer_norm_epsilon": 10**400}, r"layer_norm_epsilon: got 1000.*needs a float"),
        ({"dense_act_fn": ["relu"]}, "dense_act_fn: got .*needs an activation of"),
        ({"num_layers": 10**9}, r"num_layers: got 1000000000; needs less than the \d+ tensors"),
        ({"num_experts": 10**9}, "num_experts: got"),
        ({"expert_capacity": 0}, r"config\.json: expert_capacity: got 0"),
        ({"relative_attention_max_distance": 9}, r"config\.json: relative_attention_max_distance: got 9"),
        ({"num_sparse_encoder_layers": 4, "num_sparse_decoder_layers": 4}, "num_sparse_decoder_layers: got 0"),
    ],
)
def test_a_configuration_that_cannot_be_followed_is_refused_by_its_key(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    theirs = folder_of(tmp_path / "theirs", SWITCH)
    (theirs / "config.json").write_text(json.dumps({**SWITCH, **change}))
    with pytest.raises(ConfigError, match=message):
        open_import(theirs)


def test_tensors_that_are_not_those_of_the_configuration_are_listed(tmp_path: Path) -> None:
    theirs = folder_of(tmp_path / "theirs", SWITCH)
    tensors = load_file(theirs / "model.safetensors")
    tensors["surplus"] = tensors.pop("encoder.final_layer_norm.weight")
    tensors["encoder.block.1.layer.1.mlp.router.classifier.weight"] = torch.ones(3, 8)
    save_file(tensors, theirs / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        open_import(theirs)
    assert "missing: encoder.final_layer_norm.weight [8]" in str(caught.value)
    assert "unexpected: surplus [8]" in str(caught.value)
    assert "classifier.weight: shape [3, 8], config.json makes it [2, 8]" in str(caught.value)


SHARED, ENCODER, DECODER = "shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"


def apart(path: Path, config: dict[str, Any]) -> tuple[Path, dict[str, Tensor]]:
    """A folder whose three embeddings all differ, as transformers 5 makes every untied Switch model."""
    theirs = folder_of(path, config)
    tensors = load_file(theirs / "model.safetensors")
    tensors |= {name: torch.randn(50, 8) for name in (ENCODER, DECODER)}
    save_file(tensors, theirs / "model.safetensors")
    return theirs, tensors


@pytest.mark.parametrize("kind", ["switch_untied", "t5_gated_untied"])
def test_an_embedding_for_each_stack_comes_back_bit_equal(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, before = apart(tmp_path / "theirs", KINDS[kind])
    run = imported(theirs, tmp_path, "run")
    said = capsys.readouterr().out
    assert f"no part of the model, since the library never reads it: {SHARED}" in said
    (line,) = said.partition("train on from it:\n")[2].splitlines()
    model = compose_run(shlex.split(line)[2:]).model  # `pointsman train ...`
    assert model == compose.load(tmp_path / "run/config.yaml").model
    assert not model.share_embeddings
    ours = masters(run)
    assert SHARED not in ours
    assert torch.equal(ours["encoder_embedding.weight"][:50], before[ENCODER])
    assert torch.equal(ours["decoder_embedding.weight"][:50], before[DECODER])
    assert ours["decoder_embedding.weight"].shape == (128, 8)
    folder, notes = export_run(run, None, dtype=torch.float32, shard_bytes=10**9)
    after = load_file(folder / "model.safetensors")
    assert any(f"{SHARED} is what was imported" in note for note in notes)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    again = masters(imported(folder, tmp_path, "second"))
    assert again.keys() == ours.keys()
    assert all(torch.equal(again[name], ours[name]) for name in ours)
    (run / UNREAD_FILE).unlink()  # as in a run that was trained on from this one
    folder, notes = export_run(run, tmp_path / "without", dtype=torch.float32, shard_bytes=10**9)
    assert any(f"{SHARED} is a copy of the encoder's" in note for note in notes)
    assert torch.equal(load_file(folder / "model.safetensors")[SHARED], before[ENCODER])


def test_equal_copies_are_kept_once_unless_the_run_wants_both(tmp_path: Path) -> None:
    theirs = folder_of(tmp_path / "theirs", KINDS["switch_untied"])
    assert open_import(theirs).cfg.model.share_embeddings
    both = dict(open_import(theirs, overrides=["model.share_embeddings=false"]).tensors())
    assert SHARED not in both
    assert torch.equal(both["encoder_embedding.weight"], both["decoder_embedding.weight"])


def test_embeddings_that_have_no_counterpart_are_refused_and_explained(tmp_path: Path) -> None:
    theirs, tensors = apart(tmp_path / "theirs", KINDS["switch_untied"])
    with pytest.raises(CheckpointError, match=f"unexpected: {DECODER}"):
        open_import(theirs, overrides=["model.share_embeddings=true"])
    save_file({name: value for name, value in tensors.items() if name != ENCODER}, theirs / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{DECODER} differs from {SHARED} and {ENCODER} is missing"):
        open_import(theirs)
    del tensors["lm_head.weight"]
    save_file(tensors, theirs / "model.safetensors")
    with pytest.raises(CheckpointError, match="the output matrix is lost"):
        open_import(theirs)
    (theirs / "config.json").write_text(json.dumps(SWITCH))
    with pytest.raises(CheckpointError, match="to which the output matrix is tied"):
        open_import(theirs)
    theirs, _ = apart(tmp_path / "t5", {**KINDS["t5_gated_untied"], "transformers_version": "4.57.6"})
    with pytest.raises(CheckpointError, match=r"4\.x would throw it away"):
        open_import(theirs)


def test_code_beside_a_checkpoint_is_named_and_ignored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = folder_of(tmp_path / "theirs", {**T5, "auto_map": {"AutoModel": "modeling.Trap"}})
    (theirs / "modeling.py").write_text("raise SystemExit('executed')")
    imported(theirs, tmp_path, "run")
    assert "never run: auto_map, modeling.py" in capsys.readouterr().out


def test_a_run_that_exists_and_a_folder_that_is_not_empty_are_left_alone(tmp_path: Path) -> None:
    theirs = folder_of(tmp_path / "theirs", T5)
    run = imported(theirs, tmp_path, "run")
    with pytest.raises(ConfigError, match="does not exist yet"):
        import_run(theirs, runs_dir=tmp_path, name="run")
    with pytest.raises(ConfigError, match="new or empty folder"):
        export_run(run, theirs, dtype=torch.float32, shard_bytes=10**9)
    save_file({"shared.weight": torch.full((50, 8), float("nan"))}, theirs / "model.safetensors")
    with pytest.raises(CheckpointError, match="NaN"):
        import_run(theirs, runs_dir=tmp_path, name="broken")
    assert not (tmp_path / "broken").exists()
    shutil.rmtree(run)


def test_a_path_that_no_file_can_have_is_refused_as_one_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long, theirs = str(tmp_path / ("x" * 300)), str(folder_of(tmp_path / "theirs", SWITCH))
    for words, field in (
        ([long], "DIR"),
        ([theirs, "--tokenizer", long], "--tokenizer"),
        ([theirs, "--runs-dir", long], f"{long}/theirs"),
    ):
        assert cli.main(["import-hf", *words]) == 2
        assert capsys.readouterr().err.startswith(f"error: {field}: ")


def test_sizes_of_shards() -> None:
    assert [parse_size(text) for text in ("5GB", "500MB", "1.5kB", "77")] == [5 * 10**9, 5 * 10**8, 1500, 77]
    with pytest.raises(ConfigError, match="--shard-size"):
        parse_size("many")
