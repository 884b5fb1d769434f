from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.contract import ModelOutput
from model.losses import LossParts, LossScale, micro_batch_loss
from model.moe.types import LayerRouting
from tests.model.t5.build import MOE, make_batch, make_model


def routing(aux: float, z: float, groups: int, positions: int = 10) -> LayerRouting:
    return LayerRouting(aux_loss=leaf(aux), z_sum=leaf(z), positions=positions, groups=groups, stats=None)


def leaf(value: float) -> Tensor:
    return torch.tensor(value, requires_grad=True)


def output(encoder: tuple[LayerRouting, ...] = (), decoder: tuple[LayerRouting, ...] = ()) -> ModelOutput:
    loss_BT = torch.tensor([[1.0, 2.0], [4.0, 0.0]], requires_grad=True)
    return ModelOutput(token_loss_BT=loss_BT, routing={"encoder": encoder, "decoder": decoder})


SCALE = LossScale(target_tokens=14, router_tokens={"encoder": 40, "decoder": 14}, replicas=6)
LAYERS = {"encoder": (routing(3.0, 80.0, 2), routing(5.0, 40.0, 2)), "decoder": (routing(2.4, 7.0, 2, positions=5),)}


def test_cross_entropy_is_a_sum_over_the_step() -> None:
    parts = micro_batch_loss(output(), SCALE, MOE)
    assert parts.ce.item() == pytest.approx(7 / 14)
    assert parts.total.item() == pytest.approx(7 / 14 * 6)
    assert (parts.aux.item(), parts.z.item()) == (0, 0)


@pytest.mark.parametrize(
    ("semantics", "aux", "z"),
    [
        ("mesh_tf", (1.5 + 2.5 + 1.2) / 6 * 0.01, (2 + 1 + 0.5) * 0.1 * 0.01),
        # padding counts: 10 tokens in the encoder and 5 in the decoder, in each of 6 micro-batches
        ("paper", (1.5 + 2.5 + 1.2) / 6 * 0.01, (8 + 4 + 1.4) / 6 * 0.1),
        ("flaxformer", (1.5 + 2.5 + 1.2) / 3 / 6 * 0.01, (8 + 4 + 1.4) / 3 / 6 * 0.1),
        ("hf", ((1.5 + 2.5) / 2 + 1.2) / 6 * 0.01, ((8 + 4) / 2 + 1.4) / 6 * 0.1),
    ],
)
def test_router_losses(semantics: str, aux: float, z: float) -> None:
    parts = micro_batch_loss(output(**LAYERS), SCALE, replace(MOE, semantics=semantics))  # type: ignore[arg-type]
    assert parts.aux.item() == pytest.approx(aux, rel=1e-6)
    assert parts.z.item() == pytest.approx(z, rel=1e-6)
    assert parts.total.item() == pytest.approx((0.5 + aux + z) * 6, rel=1e-6)
    assert parts.total.requires_grad
    assert not any(part.requires_grad for part in (parts.ce, parts.aux, parts.z))


def test_gradient_goes_to_every_term() -> None:
    out = output(encoder=(routing(1.0, 1.0, 1),), decoder=(routing(1.0, 1.0, 1),))
    micro_batch_loss(out, SCALE, MOE).total.backward()
    for layer, tokens in zip(out.layers, (40, 14), strict=True):
        assert layer.aux_loss.grad.item() == pytest.approx(0.01, rel=1e-6)
        assert layer.z_sum.grad.item() == pytest.approx(6 * 0.001 / tokens, rel=1e-6)
    assert torch.allclose(out.token_loss_BT.grad, torch.full((2, 2), 6 / 14))


@pytest.mark.parametrize(
    ("sparse", "semantics"), [("dense", "mesh_tf"), *(("switch", name) for name in ("mesh_tf", "flaxformer", "hf"))]
)
def test_micro_batches_with_uneven_padding_equal_one_batch(sparse: str, semantics: str) -> None:
    """Averaged over micro-batches, as the engine does, gradients are those of the whole batch at once."""
    moe = replace(MOE, group_sequences=2, semantics=semantics)  # type: ignore[arg-type]
    module, batch = make_model(moe=sparse, experts=moe), make_batch(rows=8)

    def step(pieces: list[slice]) -> tuple[list[LossParts], dict[str, Tensor]]:
        module.zero_grad()
        scale = LossScale(
            target_tokens=(batch.targets_BT != 0).sum(),
            router_tokens={"encoder": (batch.encoder_BL != 0).sum(), "decoder": (batch.targets_BT != 0).sum()},
            replicas=len(pieces),
        )
        parts = []
        for piece in pieces:
            rows = batch[piece]
            out = module(rows.encoder_BL, rows.targets_BT, mode="train", noise=None)
            parts.append(micro_batch_loss(out, scale, moe))
            (parts[-1].total / len(pieces)).backward()
        return parts, {name: p.grad.clone() for name, p in module.named_parameters()}  # type: ignore[union-attr]

    one, one_grads = step([slice(0, 8)])
    many, many_grads = step([slice(i, i + 2) for i in range(0, 8, 2)])
    for field in ("ce", "aux", "z"):
        assert getattr(one[0], field).item() == pytest.approx(sum(getattr(p, field).item() for p in many), rel=1e-12)
    means = [p.total / 4 for p in many]
    assert one[0].total.item() == pytest.approx(sum(m.item() for m in means), rel=1e-12)
    for name, grad in one_grads.items():
        assert torch.allclose(grad, many_grads[name], rtol=0, atol=1e-12 * grad.abs().max().item() + 1e-15), name


def test_losses_do_not_depend_on_whether_routing_is_counted() -> None:
    module, batch = make_model(moe="switch"), make_batch()
    found = []
    for wanted in (True, False, True):
        module.count_routing(wanted)
        out = module(batch.encoder_BL, batch.targets_BT, mode="train", noise=None)
        assert all((layer.stats is not None) is wanted for layer in out.layers)
        found.append(micro_batch_loss(out, SCALE, MOE).total)
    assert len(out.layers) > 0
    assert found[0] == found[1] == found[2]
