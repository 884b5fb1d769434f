"""Each row of the semantics' table on a model built from its preset: spreads, layout, losses, expert gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from conf.schema import RunConfig, SemanticsName
from model.build import build_model
from model.losses import LossScale, micro_batch_loss
from model.moe.layer import MoeLayer
from parallel.mesh.axes import single_process
from tests.conf.composed import composed
from tests.model.t5.build import make_batch

WIDTH, FF, CUT = 128, 384, 0.8796  # CUT: what truncation at two sigma leaves of a spread
NAMES: tuple[SemanticsName, ...] = ("mesh_tf", "flaxformer", "hf", "hf_4", "paper")
SIZES = (
    f"model.d_model={WIDTH}", f"model.d_ff={FF}", "model.vocab_size=1000", "data.tokenizer_vocab=900",
    "model.init_scale=0.1", "model.dropout=0", "moe.num_experts=4", "moe.group_sequences=1",
    "moe.min_expert_capacity=1", "moe.jitter=0",
)  # fmt: skip


def built(semantics: SemanticsName, *more: str) -> tuple[Any, RunConfig]:
    cfg = composed(f"moe={semantics}", *SIZES, *more)
    return build_model(cfg, single_process(), device="cpu", dtype=torch.float32), cfg


def sparse(module: Any) -> tuple[list[int], list[int]]:
    """Indices of the expert layers of both stacks."""
    stacks = (module.encoder, module.decoder)
    return tuple([i for i, layer in enumerate(s.layers) if isinstance(layer.ff, MoeLayer)] for s in stacks)  # type: ignore[return-value]


SPREAD = {  # stddev of router, experts' wi and wo, attention's k, embedding
    "mesh_tf": (CUT * math.sqrt(0.1 / WIDTH), CUT * math.sqrt(0.1 / WIDTH), CUT * math.sqrt(0.1 / FF), CUT, 1.0),
    "flaxformer": (0.02, math.sqrt(0.1 / WIDTH), math.sqrt(0.1 / FF), 1.0, 1.0),
    "hf": (math.sqrt(0.1), math.sqrt(0.1 / WIDTH), math.sqrt(0.1 / WIDTH), 1.0, math.sqrt(0.1)),
    "paper": (CUT * math.sqrt(0.1 / WIDTH), CUT * math.sqrt(0.1 / WIDTH), CUT * math.sqrt(0.1 / FF), CUT, 1.0),
}
SPREAD["hf_4"] = SPREAD["hf"]


@pytest.mark.parametrize("semantics", NAMES)
def test_initial_spreads(semantics: SemanticsName) -> None:
    module, _ = built(semantics)
    router, wi, wo, k, embedding = SPREAD[semantics]
    layer = module.encoder.layers[1]
    assert layer.ff.router.weight.std().item() == pytest.approx(router, rel=0.1)
    assert layer.ff.experts.wi.std().item() == pytest.approx(wi, rel=0.02)
    assert layer.ff.experts.wo.std().item() == pytest.approx(wo, rel=0.02)
    assert layer.self_attention.k.weight.std().item() == pytest.approx(k * math.sqrt(0.1 / WIDTH), rel=0.03)
    assert module.shared.weight.std().item() == pytest.approx(embedding, rel=0.02)
    cut = layer.ff.experts.wi.abs().max().item() / layer.ff.experts.wi.std().item() < 2.3
    assert cut is (semantics in ("mesh_tf", "paper"))


@pytest.mark.parametrize("semantics", NAMES)
def test_layout(semantics: SemanticsName) -> None:
    deep = ("model.num_encoder_layers=8", "model.num_decoder_layers=6", "model.d_model=16", "model.d_ff=16")
    module, _ = built(semantics, *deep, "moe.sparse_every=4", "moe.decoder_sparse_every=3")
    assert sparse(module) == (([1, 5], [1, 4]) if semantics in ("hf", "hf_4") else ([3, 7], [2, 5]))


@pytest.mark.parametrize("semantics", NAMES)
def test_losses_over_layers_and_expert_gradients(semantics: SemanticsName) -> None:
    deep = ("model.num_encoder_layers=4", "model.num_decoder_layers=2", "moe.z_loss_weight=0.5")
    grads = {}
    for defects in ("mended", "reproduced"):
        module, cfg = built(semantics, *deep, f"moe.defects={defects}")
        batch = make_batch(rows=4)
        out = module(batch.encoder_BL, batch.targets_BT, mode="train", noise=None)
        scale = LossScale(target_tokens=7, router_tokens={"encoder": 20, "decoder": 14}, replicas=1)
        parts = micro_batch_loss(out, scale, cfg.moe)
        encoder = [float(layer.aux_loss.detach()) / 4 for layer in out.routing["encoder"]]
        (decoder,) = (float(layer.aux_loss.detach()) / 4 for layer in out.routing["decoder"])
        total = {"mesh_tf": sum(encoder) + decoder, "flaxformer": (sum(encoder) + decoder) / 3}
        total["paper"], mended_hf = total["mesh_tf"], sum(encoder) / 2 + decoder
        weight = 0.001 if semantics in ("hf", "hf_4") else 0.01
        if defects == "mended" or semantics in total:
            assert parts.aux.item() == pytest.approx(weight * total.get(semantics, mended_hf), rel=1e-5)
        else:
            assert parts.aux.item() != pytest.approx(weight * mended_hf, rel=1e-4), "joined before f * P"
        squares = [float(layer.z_sum.detach()) for layer in out.layers]
        tokens = (20, 20, 14) if semantics == "mesh_tf" else (36, 36, 28)
        means = [square / count for square, count in zip(squares, tokens, strict=True)]
        joined = {"flaxformer": sum(means) / 3, "mesh_tf": 0.01 * sum(means), "paper": sum(means)}
        z = joined.get(semantics, (means[0] + means[1]) / 2 + means[2])
        assert parts.z.item() == pytest.approx(0.5 * z, rel=1e-5)
        out.token_loss_BT.sum().backward()
        grads[defects] = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    factor = 4.0 if semantics == "flaxformer" else 1.0
    for name, mended in grads["mended"].items():
        wanted = mended * (factor if ".experts." in name else 1.0)
        torch.testing.assert_close(grads["reproduced"][name], wanted, rtol=1e-4, atol=1e-7, msg=name)
