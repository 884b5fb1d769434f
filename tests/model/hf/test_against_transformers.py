"""Freshly made random models of the installed transformers, imported, compared, exported and loaded again.

Needs the extra `hf` (`pip install -e '.[hf]' -c constraints.txt`); the recordings of tests/golden need no library.
Shape suffixes: B batch, L encoder length, T decoder length, V vocabulary.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from torch import Tensor

from conf import compose
from model.build import build_model
from model.hf.convert import ToTheirs
from model.hf.names import Kind, pairs
from model.losses import LossScale, micro_batch_loss
from parallel.layers.sharding import tagged_parameters
from parallel.mesh.axes import single_process
from tests.model.hf.folders import imported
from trainer.checkpoint.reader import CheckpointReader, load_weights
from trainer.commands.export_hf import export_run

transformers = pytest.importorskip(
    "transformers", reason="transformers, the optional extra hf, is not installed (make test-hf installs it)"
)
pytestmark = pytest.mark.slow
TOLERANCE = 1e-5  # of max|a - b| / max|b|, in fp32
SIZES: dict[str, Any] = {
    "vocab_size": 101, "d_model": 40, "d_kv": 7, "d_ff": 48, "num_heads": 3, "num_layers": 3, "num_decoder_layers": 2,
    "decoder_start_token_id": 0,
}  # fmt: skip
SWITCH = {
    **SIZES, "num_experts": 4, "expert_capacity": 3, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1,
    "router_aux_loss_coef": 0.05, "router_z_loss_coef": 0.01,
}  # fmt: skip
CASES: dict[str, tuple[Kind, dict[str, Any], torch.dtype]] = {
    "t5": ("t5", SIZES, torch.float32),
    "t5_gelu": ("t5", {**SIZES, "feed_forward_proj": "gelu_new"}, torch.float32),
    "t5_gated_untied": (
        "t5",
        {**SIZES, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        torch.float32,
    ),
    "t5_gelu_exact": ("t5", {**SIZES, "feed_forward_proj": "gelu"}, torch.float32),
    "t5_gated_gelu_exact": (
        "t5",
        {**SIZES, "feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu", "tie_word_embeddings": False},
        torch.float32,
    ),
    "t5_gated_silu": (
        "t5",
        {**SIZES, "feed_forward_proj": "gated-silu", "tie_word_embeddings": False},
        torch.float32,
    ),
    "t5_one_bank": ("t5", {**SIZES, "num_decoder_layers": None, "relative_attention_num_buckets": 7}, torch.bfloat16),
    "switch": ("switch_transformers", SWITCH, torch.float32),
    "switch_half": ("switch_transformers", {**SWITCH, "vocab_size": 300, "num_experts": 3}, torch.float16),
    "switch_untied": ("switch_transformers", {**SWITCH, "tie_word_embeddings": False}, torch.float32),
    "switch_every_layer": ("switch_transformers", {**SWITCH, "num_sparse_encoder_layers": 3}, torch.float32),
    "switch_asked_for_none": ("switch_transformers", {**SWITCH, "num_sparse_decoder_layers": 0}, torch.float32),
    "switch_dense_encoder": ("switch_transformers", {**SWITCH, "num_sparse_encoder_layers": 4}, torch.float32),
    "switch_gelu": ("switch_transformers", {**SWITCH, "dense_act_fn": "gelu_new"}, torch.float32),
    "switch_gelu_exact": ("switch_transformers", {**SWITCH, "dense_act_fn": "gelu"}, torch.float32),
    "switch_silu": ("switch_transformers", {**SWITCH, "dense_act_fn": "silu"}, torch.float32),
    "switch_one_expert": ("switch_transformers", {**SWITCH, "num_experts": 1, "expert_capacity": 5}, torch.float32),
}
CLASSES = {"t5": "T5", "switch_transformers": "SwitchTransformers"}


def fresh(kind: Kind, settings: dict[str, Any], dtype: torch.dtype, folder: Path) -> Any:
    """A random model of the library, saved to `folder` and loaded from it in fp32."""
    torch.manual_seed(11)
    config = getattr(transformers, f"{CLASSES[kind]}Config")(**settings)
    made = getattr(transformers, f"{CLASSES[kind]}ForConditionalGeneration")(config)
    made.to(dtype).save_pretrained(folder)
    return type(made).from_pretrained(folder, dtype=torch.float32).eval()


def batch(vocab: int) -> tuple[Tensor, Tensor]:
    """Encoder ids and labels with padding, 0 in both."""
    random = torch.Generator().manual_seed(5)
    x_BL = torch.randint(2, vocab, (4, 17), generator=random)
    labels_BT = torch.randint(2, vocab, (4, 11), generator=random)
    x_BL[1, 9:], x_BL[3, 4:], labels_BT[2, 5:] = 0, 0, 0
    return x_BL, labels_BT


def run_theirs(model: Any, kind: Kind, x_BL: Tensor, labels_BT: Tensor) -> Any:
    """Output of their model with its router losses, after backward."""
    extra = {"output_router_logits": True} if kind == "switch_transformers" else {}
    labels = labels_BT.masked_fill(labels_BT == 0, -100)
    output = model(input_ids=x_BL, attention_mask=(x_BL != 0).long(), labels=labels, **extra)
    output.loss.backward()
    return output


def run_ours(run: Path, kind: Kind, x_BL: Tensor, labels_BT: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Logits [B, T, V], loss and the gradient of each tensor under their name."""
    cfg = compose.load(run / "config.yaml")
    module = build_model(cfg, single_process(), device="cpu", dtype=torch.float32)
    load_weights(module, CheckpointReader(run / "checkpoints" / "step_00000000"), single_process())
    inputs_BT = torch.cat([torch.zeros_like(labels_BT[:, :1]), labels_BT[:, :-1]], dim=1)
    memory = module.memory(module.encode(x_BL, mode="eval", noise=None).hidden_BLD, x_BL)
    hidden_BTD = module.decoder(
        module.embed(inputs_BT, "decoder"), labels_BT != 0, memory, mode="eval", noise=None
    ).hidden_BLD
    logits_BTV = module.logits(hidden_BTD)[..., : cfg.model.vocab_size].detach()
    output = module(x_BL, labels_BT, mode="train", noise=None)
    tokens = int((labels_BT != 0).sum())
    routed = {"encoder": int((x_BL != 0).sum()), "decoder": tokens}
    scale = LossScale(target_tokens=tokens, router_tokens=routed, replicas=1)
    loss = micro_batch_loss(output, scale, cfg.moe).total
    loss.backward()
    gradients = {name: parameter.grad for name, parameter, _ in tagged_parameters(module)}
    table = pairs(cfg.model, cfg.moe, kind)
    read = ToTheirs(lambda name: gradients[name], table, cfg.model.vocab_size)
    return logits_BTV, loss.detach(), {name: read(name) for pair in table for name in pair.theirs}


def relative_error(got: Tensor, expected: Tensor) -> float:
    largest = expected.abs().max()
    difference = (got - expected).abs().max()
    return float(difference / largest if largest > 0 else difference)


@pytest.mark.parametrize("case", CASES)
def test_a_fresh_model_is_the_same_here_and_after_a_round_trip(case: str, tmp_path: Path) -> None:
    kind, settings, dtype = CASES[case]
    model = fresh(kind, settings, dtype, tmp_path / "theirs")
    x_BL, labels_BT = batch(settings["vocab_size"])
    expected = run_theirs(model, kind, x_BL, labels_BT)
    run = imported(tmp_path / "theirs", tmp_path, "run")
    logits_BTV, loss, gradients = run_ours(run, kind, x_BL, labels_BT)
    assert relative_error(logits_BTV, expected.logits.detach()) < TOLERANCE
    assert relative_error(loss, expected.loss.detach()) < TOLERANCE
    theirs = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert gradients.keys() >= theirs.keys(), "a gradient of theirs that none of ours was compared with"
    for name, gradient in gradients.items():  # experts without a token have none there and 0 here
        assert relative_error(gradient, theirs.get(name, torch.zeros_like(gradient))) < TOLERANCE, name

    folder, _ = export_run(run, tmp_path / "again", dtype=dtype, shard_bytes=10**9)
    before, after = (load_file(f / "model.safetensors") for f in (tmp_path / "theirs", folder))
    assert before.keys() == after.keys()
    assert all(after[name].dtype == dtype and torch.equal(after[name], before[name]) for name in before)
    again = type(model).from_pretrained(folder, dtype=torch.float32).eval()
    output = run_theirs(again, kind, x_BL, labels_BT)
    assert torch.equal(output.logits, expected.logits)
    assert torch.equal(output.loss, expected.loss)


def logits_of(model: Any, x_BL: Tensor, labels_BT: Tensor) -> Tensor:
    with torch.no_grad():
        labels = labels_BT.masked_fill(labels_BT == 0, -100)
        return model(input_ids=x_BL, attention_mask=(x_BL != 0).long(), labels=labels).logits


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kept", ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "save_model"])
def test_an_embedding_by_another_name_is_what_the_library_makes_of_it(kept: str, tied: bool, tmp_path: Path) -> None:
    settings = {**SIZES, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": tied}
    fresh("t5", settings, torch.float32, tmp_path / "whole")
    theirs = tmp_path / "theirs"
    if kept == "save_model":
        model = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "whole", dtype=torch.float32)
        theirs.mkdir()
        model.config.save_pretrained(theirs)
        save_model(model, str(theirs / "model.safetensors"))
    else:
        shutil.copytree(tmp_path / "whole", theirs)
        tensors = load_file(theirs / "model.safetensors")
        embedding = tensors.pop("shared.weight")
        tensors = {name: value for name, value in tensors.items() if "embed_tokens" not in name} | {kept: embedding}
        if not tied:  # the library gave both the same
            tensors["lm_head.weight"] = torch.randn(embedding.shape, generator=torch.Generator().manual_seed(2))
        save_file(tensors, theirs / "model.safetensors", metadata={"format": "pt"})
    assert "shared.weight" not in load_file(theirs / "model.safetensors")
    model = transformers.T5ForConditionalGeneration.from_pretrained(theirs, dtype=torch.float32).eval()
    x_BL, labels_BT = batch(SIZES["vocab_size"])
    logits_BTV, _, _ = run_ours(imported(theirs, tmp_path, "run"), "t5", x_BL, labels_BT)
    assert relative_error(logits_BTV, logits_of(model, x_BL, labels_BT)) < TOLERANCE


@pytest.mark.parametrize("tied", [True, False])
def test_an_mt5_computes_the_same_here_and_as_the_t5_that_is_exported(tied: bool, tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = transformers.MT5ForConditionalGeneration(transformers.MT5Config(**SIZES)).eval()
    if not tied:  # 5.x builds no other, but loads them, as the published ones are
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.shared.weight))
    model.save_pretrained(tmp_path / "theirs")
    model = type(model).from_pretrained(tmp_path / "theirs", dtype=torch.float32).eval()
    x_BL, labels_BT = batch(SIZES["vocab_size"])
    expected = logits_of(model, x_BL, labels_BT)
    run = imported(tmp_path / "theirs", tmp_path, "run")
    logits_BTV, _, _ = run_ours(run, "t5", x_BL, labels_BT)
    assert relative_error(logits_BTV, expected) < TOLERANCE
    folder, _ = export_run(run, tmp_path / "again", dtype=torch.float32, shard_bytes=10**9)
    again = transformers.T5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    assert torch.equal(logits_of(again, x_BL, labels_BT), expected)
