"""Small folders as Transformers would write them, made without it, and what import makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from parallel.engine.protocol import MASTER
from trainer.checkpoint.reader import CheckpointReader
from trainer.commands.import_hf import import_run

STACKS = {"encoder": "", "decoder": "decoder_"}  # and what their number of layers has in its key
SIZES: dict[str, Any] = {
    "vocab_size": 50, "d_model": 8, "d_kv": 4, "d_ff": 12, "num_heads": 2, "num_layers": 3, "num_decoder_layers": 2,
    "transformers_version": "5.23.0", "tie_word_embeddings": True,
}  # fmt: skip
T5 = {**SIZES, "model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}
SWITCH = {
    **SIZES, "model_type": "switch_transformers", "num_experts": 2, "expert_capacity": 3,
    "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1,
}  # fmt: skip

KINDS = {
    "t5": T5,
    "t5_gelu": {**T5, "feed_forward_proj": "gelu_new"},
    "t5_gated_untied": {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "t5_gated_tied_unscaled": {**T5, "feed_forward_proj": "gated-gelu", "scale_decoder_outputs": False},
    "switch": SWITCH,
    "switch_untied": {**SWITCH, "tie_word_embeddings": False},
}


def folder_of(path: Path, config: dict[str, Any]) -> Path:
    """A folder with random weights under the names and shapes that the library gives them, written out by hand."""
    random = torch.Generator().manual_seed(3)
    d, ff, inner, switch = 8, 12, 8, config["model_type"] == "switch_transformers"
    steps = {s: config[f"num_{n}layers"] // config.get(f"num_sparse_{s}_layers", 1) for s, n in STACKS.items()}
    gated = config.get("feed_forward_proj") == "gated-gelu"
    shapes: dict[str, tuple[int, ...]] = {"shared.weight": (50, d)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (50, d)
        if switch:
            shapes |= {f"{stack}.embed_tokens.weight": (50, d) for stack in ("encoder", "decoder")}
    for stack, depth, every in (("encoder", 3, steps["encoder"]), ("decoder", 2, steps["decoder"])):
        shapes[f"{stack}.final_layer_norm.weight"] = (d,)
        shapes[f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = (32, 2)
        for i in range(depth):
            attentions = ["SelfAttention"] if stack == "encoder" else ["SelfAttention", "EncDecAttention"]
            for j in range(len(attentions) + 1):
                shapes[f"{stack}.block.{i}.layer.{j}.layer_norm.weight"] = (d,)
            for j, attention in enumerate(attentions):
                prefix = f"{stack}.block.{i}.layer.{j}.{attention}"
                shapes |= {f"{prefix}.{w}.weight": (inner, d) for w in "qkv"} | {f"{prefix}.o.weight": (d, inner)}
            mlp = f"{stack}.block.{i}.layer.{len(attentions)}.{'mlp' if switch else 'DenseReluDense'}"
            banks = [f"{mlp}."]
            if switch and every and i % every == 1:
                shapes[f"{mlp}.router.classifier.weight"] = (2, d)
                banks = [f"{mlp}.experts.expert_{e}." for e in range(2)]
            for bank in banks:
                shapes |= {f"{bank}{w}.weight": (ff, d) for w in (("wi_0", "wi_1") if gated else ("wi",))}
                shapes[f"{bank}wo.weight"] = (d, ff)
    tensors = {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}
    for name in tensors:
        if "embed_tokens" in name:
            tensors[name] = tensors["shared.weight"].clone()
    path.mkdir()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(config))
    return path


def masters(run: Path) -> dict[str, Tensor]:
    reader = CheckpointReader(run / "checkpoints" / "step_00000000")
    return {name: reader.read(MASTER, name) for name in reader.names(MASTER)}


def imported(folder: Path, runs: Path, name: str) -> Path:
    return import_run(folder, runs_dir=runs, name=name)
