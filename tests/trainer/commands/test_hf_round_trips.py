"""Round trips of models at the edges of both configurations, and imports that are cut off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import trainer.run_dir
from conf import compose
from conf.derived.layers import stacks
from conf.errors import CheckpointError, ConfigError
from launch import cli
from model.hf.config import read_config
from tests.model.hf.folders import KINDS, SWITCH, T5, folder_of, imported, masters
from trainer.commands.export_hf import export_run
from trainer.commands.import_hf import import_run, open_import


def exported(run: Path, to: Path) -> tuple[Path, list[str]]:
    return export_run(run, to, dtype=torch.float32, shard_bytes=10**9)


@pytest.mark.parametrize(("encoder", "decoder"), [(4, 1), (1, 3)])
def test_more_sparse_layers_than_layers_are_none_as_in_the_library(
    encoder: int, decoder: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {**SWITCH, "num_sparse_encoder_layers": encoder, "num_sparse_decoder_layers": decoder}
    theirs = folder_of(tmp_path / "theirs", config)
    run = imported(theirs, tmp_path, "run")
    stack = "encoder" if encoder > 3 else "decoder"
    assert f"{stack} layers with experts: none" in capsys.readouterr().out
    cfg = compose.load(run / "config.yaml")
    assert not any(layer.experts for layer in stacks(cfg.model, cfg.moe)[stack])
    folder, _ = exported(run, tmp_path / "again")
    before, after = load_file(theirs / "model.safetensors"), load_file(folder / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    written = json.loads((folder / "config.json").read_text())
    depth = written["num_layers" if stack == "encoder" else "num_decoder_layers"]
    assert written[f"{stack}_sparse_step"] == depth // written[f"num_sparse_{stack}_layers"] == 0
    again = open_import(folder).cfg
    assert (again.model, again.moe) == (cfg.model, cfg.moe)


def test_a_single_layer_that_the_step_passes_by_has_no_experts(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**SWITCH, "num_decoder_layers": 1, "decoder_sparse_step": 2}))
    assert read_config(folder).moe["decoder_sparse_every"] == 0


@pytest.mark.parametrize("kind", ["switch_untied", "t5_gated_untied"])
def test_an_output_matrix_after_scaling_comes_back_as_it_was(kind: str, tmp_path: Path) -> None:
    theirs = folder_of(tmp_path / "theirs", KINDS[kind])
    line = ["import-hf", "--name", "run", str(theirs), "--runs-dir", str(tmp_path), "model.logit_scale=width"]
    assert cli.run(line) == 0
    folder, notes = exported(tmp_path / "run", tmp_path / "again")
    assert any("4.x would throw it away" in note for note in notes)
    again = open_import(folder)
    assert again.cfg.model == compose.load(tmp_path / "run" / "config.yaml").model
    ours, read = masters(tmp_path / "run"), dict(again.tensors())
    assert ours.keys() == read.keys()
    assert all(torch.equal(ours[name], read[name]) for name in ours)


@pytest.mark.parametrize(("version", "semantics"), [("4.57.6", "hf_4"), ("5.23.0", "hf")])
def test_the_semantics_of_a_version_survive_a_round_trip(version: str, semantics: str, tmp_path: Path) -> None:
    theirs = folder_of(tmp_path / "theirs", {**SWITCH, "transformers_version": version})
    folder, _ = exported(imported(theirs, tmp_path, "run"), tmp_path / "again")
    assert json.loads((folder / "config.json").read_text())["transformers_version"] == version
    assert open_import(folder).cfg.moe.semantics == semantics


def test_a_setting_of_the_user_is_refused_under_its_own_name(tmp_path: Path) -> None:
    theirs = folder_of(tmp_path / "theirs", SWITCH)
    with pytest.raises(ConfigError, match=r"^moe\.num_experts: got 0.*try moe\.num_experts=1"):
        open_import(theirs, overrides=["moe.num_experts=0"])


def test_an_import_that_is_cut_off_leaves_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = folder_of(tmp_path / "theirs", T5)
    seen: list[list[str]] = []

    def cut(*_: object, **__: object) -> None:
        seen.append(sorted(path.name for path in tmp_path.iterdir()))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer.run_dir, "write_status", cut)
        with pytest.raises(KeyboardInterrupt):
            imported(theirs, tmp_path, "run")
    assert seen == [[".run.partial", "theirs"]]  # at the last moment before it is whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["theirs"]
    (tmp_path / ".run.partial" / "checkpoints").mkdir(parents=True)  # of an import that was killed
    (tmp_path / ".run.partial" / "left").touch()
    run = imported(theirs, tmp_path, "run")
    assert not (run / "left").exists()
    assert not (tmp_path / ".run.partial").exists()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    theirs = folder_of(tmp_path / "theirs", T5)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"file/run: cannot be written .*--runs-dir"):
        import_run(theirs, runs_dir=tmp_path / "file", name="run")
    with pytest.raises(CheckpointError, match=r"file/out: cannot be written"):
        exported(imported(theirs, tmp_path, "run"), tmp_path / "file" / "out")


def test_tensors_that_are_no_values_and_files_that_are_none_are_refused(tmp_path: Path) -> None:
    theirs = folder_of(tmp_path / "theirs", T5)
    tensors = load_file(theirs / "model.safetensors")
    (theirs / "model.safetensors").unlink()
    for value, form in ((tensors["shared.weight"].to("meta"), "without values"), (torch.eye(50).to_sparse(), "sparse")):
        torch.save({**tensors, "shared.weight": value}, theirs / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match=form):
            open_import(theirs)
    (theirs / "model.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="is not a file"):
        open_import(theirs)


def test_what_ends_a_sequence_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    imported(folder_of(tmp_path / "theirs", {**T5, "eos_token_id": 7}), tmp_path, "run")
    assert "eos_token_id is 7 there" in capsys.readouterr().out


def test_what_an_old_file_carries_unread_comes_back(tmp_path: Path) -> None:
    theirs = folder_of(tmp_path / "theirs", T5)
    unread = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    before = load_file(theirs / "model.safetensors") | {unread: torch.randn(32, 2)}
    save_file(before, theirs / "model.safetensors")
    folder, _ = exported(imported(theirs, tmp_path, "run"), tmp_path / "again")
    after = load_file(folder / "model.safetensors")
    assert before.keys() == after.keys()
    assert torch.equal(before[unread], after[unread])
