"""The dense model against recorded runs of Hugging Face T5 (../shared/golden/hf_t5)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from model.generate import GenerateOptions, generate
from model.t5.model import SwitchTransformer
from tests.model.t5.build import make_model

GOLDEN = Path(__file__).resolve().parents[4] / "shared/golden/hf_t5"
CASES = ["v10_relu_tied", "v11_gated_gelu_untied", "v11_gated_gelu_long"]

pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="../shared/golden/hf_t5 is not on this machine")

# Part of a Hugging Face name -> part of ours, below `<stack>.block.<i>.layer.<j>.`
SUBLAYERS = {
    "SelfAttention": "self_attention",
    "EncDecAttention": "cross_attention",
    "DenseReluDense": "ff",
}


def our_name(name: str) -> str:
    """`decoder.block.1.layer.2.DenseReluDense.wi.weight` -> `decoder.layers.1.ff.wi.weight`, and so on."""
    parts = name.split(".")
    if parts[1] == "final_layer_norm":
        return f"{parts[0]}.final_norm.weight"
    if parts[1] != "block":
        return name
    stack, index, sublayer = parts[0], parts[2], int(parts[4])
    if "relative_attention_bias" in parts:
        return f"{stack}.relative_bias.weight"
    if parts[5] == "layer_norm":
        order = ["self_attention", "ff"] if stack == "encoder" else ["self_attention", "cross_attention", "ff"]
        return f"{stack}.layers.{index}.{order[sublayer]}_norm.weight"
    return f"{stack}.layers.{index}.{SUBLAYERS[parts[5]]}.{'.'.join(parts[6:])}"


@dataclass(frozen=True, kw_only=True)
class Case:
    module: SwitchTransformer
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    scalars: dict[str, Any]

    @property
    def targets_BT(self) -> Tensor:
        labels_BT = self.inputs["labels"].long()
        return labels_BT.masked_fill(labels_BT == -100, 0)

    @property
    def decoder_inputs_BT(self) -> Tensor:
        targets_BT = self.targets_BT
        return torch.cat([torch.zeros_like(targets_BT[:, :1]), targets_BT[:, :-1]], 1)


def load_case(name: str, dtype: torch.dtype) -> Case:
    folder = GOLDEN / name
    cfg = json.loads((folder / "config.json").read_text())
    manifest = json.loads((GOLDEN / "manifest.json").read_text())
    recorded = next(case for case in manifest["cases"] if case["case"] == name)["outputs"]["4.57.6"]
    weights = load_file(folder / "model.safetensors")
    module = make_model(
        dtype=dtype,
        vocab_size=cfg["vocab_size"],
        d_model=cfg["d_model"],
        d_ff=cfg["d_ff"],
        d_kv=cfg["d_kv"],
        num_heads=cfg["num_heads"],
        num_encoder_layers=cfg["num_layers"],
        num_decoder_layers=cfg["num_decoder_layers"],
        ffn="gated_gelu" if cfg["is_gated_act"] else "relu",
        tie_embeddings="lm_head.weight" not in weights,
        relative_buckets=cfg["relative_attention_num_buckets"],
        relative_max_distance=cfg["relative_attention_max_distance"],
        norm_epsilon=cfg["layer_norm_epsilon"],
    )
    # The stacks' copies of the shared embedding are equal to it and have no counterpart here.
    state = {our_name(key): value for key, value in weights.items() if "embed_tokens" not in key}
    module.load_state_dict({key: value.to(dtype) for key, value in state.items()}, strict=True)
    inputs = load_file(folder / "inputs.safetensors")
    outputs = load_file(folder / "outputs_4.57.6.safetensors")
    return Case(module=module, inputs=inputs, outputs=outputs, scalars=recorded["scalars"])


def assert_close(ours: Tensor, recorded: Tensor, tolerance: float, what: str) -> None:
    error = (ours.double() - recorded.double()).abs().max() / recorded.double().abs().max()
    assert error <= tolerance, f"{what}: relative error {error:.2e} above {tolerance:.0e}"


@pytest.fixture(params=[(name, dtype) for name in CASES for dtype in (torch.float32, torch.float64)], ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    return load_case(*request.param)


def hidden_states(case: Case, stack: str) -> Tensor:
    """Embedding, every block but the last, and the last after the final norm, as the library stacks them."""
    module, seen = case.module, []
    part = getattr(module, stack)
    hooks = [part.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))]
    hooks += [layer.register_forward_hook(lambda _, args, out: seen.append(out.x_BLD)) for layer in part.layers[:-1]]
    hooks += [part.final_norm.register_forward_hook(lambda _, args, out: seen.append(out))]
    with torch.no_grad():
        module(case.inputs["input_ids"].long(), case.decoder_inputs_BT, case.targets_BT, mode="eval", noise=None)
    for hook in hooks:
        hook.remove()
    return torch.stack(seen)


def test_hidden_states(case: Case) -> None:
    for stack in ("encoder", "decoder"):
        ours, recorded = hidden_states(case, stack), case.outputs[f"{stack}_hidden_states"]
        for index, (one, other) in enumerate(zip(ours, recorded, strict=True)):
            assert_close(one, other, 2e-5, f"{stack} hidden state {index}")


def test_logits(case: Case) -> None:
    module, tokens_BL = case.module, case.inputs["input_ids"].long()
    with torch.no_grad():
        encoded = module.encode(tokens_BL, mode="eval", noise=None)
        memory = module.memory(encoded.hidden_BLD, tokens_BL)
        real_BT = case.targets_BT != 0
        embedded_BTD = module.shared(case.decoder_inputs_BT)
        decoded = module.decoder(embedded_BTD, real_BT, memory, mode="eval", noise=None)
        logits = module.logits(decoded.hidden_BLD)
    assert_close(encoded.hidden_BLD, case.outputs["encoder_last_hidden_state"], 2e-5, "encoder output")
    assert_close(logits, case.outputs["logits"], 2e-5, "logits")


def test_loss_and_gradients(case: Case) -> None:
    tokens_BL, targets_BT = case.inputs["input_ids"].long(), case.targets_BT
    output = case.module(tokens_BL, case.decoder_inputs_BT, targets_BT, mode="train", noise=None)
    loss = output.token_loss_BT.sum() / (targets_BT != 0).sum()
    loss.backward()
    assert loss.item() == pytest.approx(case.scalars["loss"], rel=1e-5)
    grads = {name: p.grad for name, p in case.module.named_parameters()}
    for name, norm in case.scalars["grad_norms"].items():
        if "embed_tokens" not in name:
            assert grads[our_name(name)].norm().item() == pytest.approx(norm, rel=1e-4), name
    compared = 0
    for key, recorded in case.outputs.items():
        name = key.removeprefix("grad:")
        if key.startswith("grad:") and "embed_tokens" not in name:
            assert_close(grads[our_name(name)], recorded, 1e-4, key)
            compared += 1
    assert compared >= 8


def test_greedy_decoding(case: Case) -> None:
    recorded_BT = case.outputs["greedy"].long()
    options = GenerateOptions(mode="greedy", max_length=recorded_BT.shape[1] - 1)
    result = generate(case.module, case.inputs["input_ids"].long(), options=options)
    assert result.tokens_BT.tolist() == recorded_BT[:, 1:].tolist()
