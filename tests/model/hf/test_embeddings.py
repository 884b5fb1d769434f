"""The embedding by any of the names that published files have it under, and which files are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from conf.errors import CheckpointError
from tests.model.hf.folders import KINDS, SWITCH, T5, folder_of
from trainer.commands.export_hf import export_run
from trainer.commands.import_hf import import_run, open_import

SHARED, HEAD = "shared.weight", "lm_head.weight"
ENCODER, DECODER = "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"
ALL = (SHARED, ENCODER, DECODER, HEAD)


def renamed(
    path: Path, config: dict[str, Any], kept: tuple[str, ...], metadata: dict[str, str] | None = None
) -> Tensor:
    """A folder whose embedding is stored by the names `kept` alone; a head of its own stays. The embedding."""
    theirs = folder_of(path, config)
    tensors = load_file(theirs / "model.safetensors")
    embedding = tensors[SHARED]
    head = tensors.get(HEAD)
    for name in ALL:
        tensors.pop(name, None)
    tensors |= {name: embedding.clone() for name in kept}
    if head is not None and HEAD not in kept:
        tensors[HEAD] = head
    save_file(tensors, theirs / "model.safetensors", metadata={"format": "pt", **(metadata or {})})
    return embedding


@pytest.mark.parametrize(
    "config", [pytest.param(T5, id="t5", marks=pytest.mark.slow), pytest.param(SWITCH, id="switch")]
)
@pytest.mark.parametrize("kept", [(ENCODER,), (DECODER,), (HEAD,), (ENCODER, DECODER), (DECODER, HEAD), ALL])
def test_a_tied_embedding_by_whatever_name(config: dict[str, Any], kept: tuple[str, ...], tmp_path: Path) -> None:
    embedding = renamed(tmp_path / "theirs", config, kept)
    source = open_import(tmp_path / "theirs")
    assert source.cfg.model.tie_embeddings
    assert source.cfg.model.logit_scale == "width"
    ours = dict(source.tensors())
    assert torch.equal(ours[SHARED][:50], embedding)
    assert HEAD not in ours


@pytest.mark.parametrize("kind", [pytest.param("t5_gated_untied", marks=pytest.mark.slow), "switch_untied"])
@pytest.mark.parametrize("kept", [(ENCODER,), (DECODER,), (ENCODER, DECODER), (SHARED, DECODER)])
def test_an_untied_embedding_by_whatever_name(
    kind: str, kept: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    embedding = renamed(tmp_path / "theirs", KINDS[kind], kept)
    run = import_run(tmp_path / "theirs", runs_dir=tmp_path, name="run")
    said = f"there is no {SHARED}: {kept[0]} is the embedding of both stacks" in capsys.readouterr().out
    assert said == (SHARED not in kept)
    folder, _ = export_run(run, tmp_path / "again", dtype=torch.float32, shard_bytes=10**9)
    before, after = load_file(tmp_path / "theirs/model.safetensors"), load_file(folder / "model.safetensors")
    assert torch.equal(after[SHARED], embedding)
    assert before.keys() <= after.keys() | {ENCODER, DECODER}
    assert all(torch.equal(before[name], after[name]) for name in before.keys() & after.keys())


def test_names_that_save_model_leaves_out_are_read_from_its_notes(tmp_path: Path) -> None:
    """It keeps one name of a shared tensor and writes the others into the metadata."""
    notes = dict.fromkeys((SHARED, ENCODER, HEAD), DECODER)
    embedding = renamed(tmp_path / "theirs", T5, (DECODER,), notes)
    assert torch.equal(dict(open_import(tmp_path / "theirs").tensors())[SHARED][:50], embedding)
    # The head is the embedding although config.json denies it: without the notes it would be lost.
    (tmp_path / "theirs/config.json").write_text(json.dumps({**T5, "tie_word_embeddings": False}))
    ours = dict(open_import(tmp_path / "theirs").tensors())
    assert torch.equal(ours[HEAD], ours[SHARED])


@pytest.mark.parametrize("kind", ["t5_gated_untied", "switch_untied"])
def test_two_embeddings_without_a_shared_one(kind: str, tmp_path: Path) -> None:
    renamed(tmp_path / "theirs", KINDS[kind], (ENCODER, DECODER))
    tensors = load_file(tmp_path / "theirs/model.safetensors")
    tensors[DECODER] += 1
    save_file(tensors, tmp_path / "theirs/model.safetensors")
    source = open_import(tmp_path / "theirs")
    assert not source.cfg.model.share_embeddings
    ours = dict(source.tensors())
    assert torch.equal(ours["encoder_embedding.weight"][:50], tensors[ENCODER])
    assert torch.equal(ours["decoder_embedding.weight"][:50], tensors[DECODER])
    del tensors[HEAD]
    save_file(tensors, tmp_path / "theirs/model.safetensors")
    with pytest.raises(CheckpointError, match="the output matrix is lost"):
        open_import(tmp_path / "theirs")


def test_without_any_name_there_is_no_embedding(tmp_path: Path) -> None:
    renamed(tmp_path / "tied", T5, ())
    with pytest.raises(CheckpointError, match=f"there is no embedding; needs one of {SHARED}.*{HEAD}"):
        open_import(tmp_path / "tied")
    renamed(tmp_path / "untied", KINDS["t5_gated_untied"], ())
    with pytest.raises(CheckpointError, match=f"needs one of {SHARED}, {ENCODER}, {DECODER}$"):
        open_import(tmp_path / "untied")


@pytest.mark.parametrize(
    ("version", "tied", "head", "expected"),
    [
        ("4.57.6", False, True, (False, "one")),  # as google/mt5-* are
        ("4.57.6", True, False, (True, "width")),
        ("4.57.6", None, True, (False, "one")),
        ("5.23.0", False, True, (False, "one")),
        ("5.23.0", True, True, (False, "one")),  # 5.x scales no mT5
        ("5.23.0", True, False, (True, "one")),
    ],
)
def test_mt5_is_a_t5_whose_scaling_the_versions_see_apart(
    version: str, tied: bool | None, head: bool, expected: tuple[bool, str], tmp_path: Path
) -> None:
    gated = {**KINDS["t5_gated_untied"], "tie_word_embeddings": not head}
    theirs = folder_of(tmp_path / "theirs", gated)
    config = {**gated, "model_type": "mt5", "architectures": ["MT5ForConditionalGeneration"]}
    config |= {"transformers_version": version, "tie_word_embeddings": tied}
    del config["feed_forward_proj"]  # gated-gelu is what an mT5 has
    if tied is None:
        del config["tie_word_embeddings"]
    (theirs / "config.json").write_text(json.dumps(config))
    model = open_import(theirs).cfg.model
    assert (model.tie_embeddings, model.logit_scale) == expected
    assert (model.ffn, model.preset) == ("gated_gelu", "mt5")
    run = import_run(theirs, runs_dir=tmp_path, name="run")
    folder, _ = export_run(run, tmp_path / "again", dtype=torch.float32, shard_bytes=10**9)
    again = open_import(folder).cfg.model
    assert (again.tie_embeddings, again.logit_scale, again.ffn) == (*expected, "gated_gelu")
