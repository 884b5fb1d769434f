"""Recorded runs of Hugging Face T5 and Switch models, loaded into our module (../shared/golden/README.md)."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from model.t5.model import ModelOutput, SwitchTransformer
from tests.model.t5.build import MOE, make_model

GOLDEN = Path(__file__).resolve().parents[3] / "shared/golden"
# Part of a Hugging Face name -> part of ours, below `<stack>.block.<i>.layer.<j>.`
SUBLAYERS = {
    "SelfAttention": "self_attention",
    "EncDecAttention": "cross_attention",
    "DenseReluDense": "ff",
    "mlp": "ff",
}


def our_name(name: str) -> str:
    """`decoder.block.1.layer.2.DenseReluDense.wi.weight` -> `decoder.layers.1.ff.wi.weight`, and so on.

    Of an expert bank: `..mlp.experts.expert_3.wi.weight` -> `..ff.experts.wi`, which holds all experts.
    """
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
    prefix = f"{stack}.layers.{index}.{SUBLAYERS[parts[5]]}"
    if "experts" in parts:
        return f"{prefix}.experts.{parts[8]}"
    if "router" in parts:
        return f"{prefix}.router.weight"
    return f"{prefix}.{'.'.join(parts[6:])}"


def ours_of(tensors: dict[str, Tensor], name: str) -> Tensor:
    """The part of our tensors that a Hugging Face name means, in its orientation: [out, in]."""
    tensor = tensors[our_name(name)]
    if ".experts." in name:
        expert = int(name.split("expert_")[1].split(".")[0])
        return tensor[expert].T
    return tensor.T if ".router." in name else tensor


def _load(module: SwitchTransformer, weights: dict[str, Tensor]) -> None:
    """Fill every parameter; the stacks' copies of the shared embedding are equal to it and have no counterpart."""
    ours = dict(module.named_parameters())
    filled = dict.fromkeys(ours, 0)
    with torch.no_grad():
        for name, value in weights.items():
            if "embed_tokens" not in name:
                ours_of(ours, name).copy_(value)  # type: ignore[arg-type]
                filled[our_name(name)] += value.numel()
    assert filled == {name: parameter.numel() for name, parameter in ours.items()}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One recorded model."""

    module: SwitchTransformer
    inputs: dict[str, Tensor]
    outputs: dict[str, dict[str, Tensor]]  # by version of the library
    scalars: dict[str, dict[str, Any]]

    @property
    def tokens_BL(self) -> Tensor:
        return self.inputs["input_ids"].long()

    @property
    def targets_BT(self) -> Tensor:
        labels_BT = self.inputs["labels"].long()
        return labels_BT.masked_fill(labels_BT == -100, 0)

    @property
    def decoder_inputs_BT(self) -> Tensor:
        targets_BT = self.targets_BT
        return torch.cat([torch.zeros_like(targets_BT[:, :1]), targets_BT[:, :-1]], 1)

    def run(self) -> ModelOutput:
        return self.module(self.tokens_BL, self.decoder_inputs_BT, self.targets_BT, mode="train", noise=None)

    def logits(self) -> Tensor:
        """[B, T, vocabulary]."""
        module = self.module
        encoded = module.encode(self.tokens_BL, mode="train", noise=None)
        memory = module.memory(encoded.hidden_BLD, self.tokens_BL)
        embedded_BTD = module.shared(self.decoder_inputs_BT)
        decoded = module.decoder(embedded_BTD, self.targets_BT != 0, memory, mode="train", noise=None)
        return module.logits(decoded.hidden_BLD)

    def hidden_states(self, stack: str) -> Tensor:
        """Embedding, every block but the last, and the last after the final norm, as the library stacks them."""
        part, seen = getattr(self.module, stack), []
        hooks = [part.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))]
        hooks += [
            layer.register_forward_hook(lambda _, args, out: seen.append(out.x_BLD)) for layer in part.layers[:-1]
        ]
        hooks += [part.final_norm.register_forward_hook(lambda _, args, out: seen.append(out))]
        with torch.no_grad():
            self.run()
        for hook in hooks:
            hook.remove()
        return torch.stack(seen)


def load_case(folder: str, name: str, dtype: torch.dtype) -> Case:
    """Build our model from the recorded configuration and fill it with the recorded weights."""
    path = GOLDEN / folder / name
    cfg = json.loads((path / "config.json").read_text())
    manifest = json.loads((GOLDEN / folder / "manifest.json").read_text())
    recorded = next(case for case in manifest["cases"] if case["case"] == name)["outputs"]
    weights = load_file(path / "model.safetensors")
    experts = replace(
        MOE,
        semantics="hf",
        num_experts=cfg.get("num_experts", 1),
        sparse_every=cfg.get("encoder_sparse_step", 1),
        min_expert_capacity=cfg.get("expert_capacity", 1),
    )
    module = make_model(
        dtype=dtype,
        experts=experts,
        moe="switch" if "num_experts" in cfg else "dense",
        vocab_size=cfg["vocab_size"],
        d_model=cfg["d_model"],
        d_ff=cfg["d_ff"],
        d_kv=cfg["d_kv"],
        num_heads=cfg["num_heads"],
        num_encoder_layers=cfg["num_layers"],
        num_decoder_layers=cfg["num_decoder_layers"],
        ffn="gated_gelu" if cfg.get("is_gated_act") else "relu",
        tie_embeddings="lm_head.weight" not in weights,
        relative_buckets=cfg["relative_attention_num_buckets"],
        relative_max_distance=cfg["relative_attention_max_distance"],
        norm_epsilon=cfg["layer_norm_epsilon"],
    )
    _load(module, weights)
    versions = ("4.57.6", "5.23.0")
    outputs = {version: load_file(path / f"outputs_{version}.safetensors") for version in versions}
    scalars = {version: recorded[version]["scalars"] for version in versions}
    return Case(module=module, inputs=load_file(path / "inputs.safetensors"), outputs=outputs, scalars=scalars)


def assert_close(ours: Tensor, recorded: Tensor, tolerance: float, what: str) -> None:
    """max |ours - recorded| / max |recorded|."""
    error = (ours.double() - recorded.double()).abs().max() / recorded.double().abs().max()
    assert error <= tolerance, f"{what}: relative error {error:.2e} above {tolerance:.0e}"
