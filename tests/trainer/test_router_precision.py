"""`moe.router_precision` through the engine: which dtype decides, seen from inside a training step in bf16."""

import numpy as np
import pytest
import torch

from conf.compose import compose
from conf.derived.layers import layer_names
from data.batch import MicroBatch, StepBatch
from data.tasks.task import text_kind
from data.text.vocabulary import appended
from model.moe.layer import MoeLayer
from parallel.mesh.axes import single_process
from tests.measure.studies.tiny import TINY
from trainer.report.metrics import Meter
from trainer.session import build_initialised
from trainer.step import train_step

B, L, T, D = 8, 16, 6, 32


class Tap:
    """Keeps what the router computed."""

    def logits(self, logits_GSE):
        self.dtype = logits_GSE.dtype
        return logits_GSE

    def decided(self, routing):
        self.routing = routing


def a_batch():
    draw = np.random.default_rng(3)
    encoder_BL, targets_BT = draw.integers(2, 300, (B, L)), draw.integers(2, 300, (B, T))
    micro = MicroBatch(inputs_BL=encoder_BL, targets_BT=targets_BT, rows_B=np.arange(B))
    return StepBatch(step=0, epoch=0.0, micro=(micro,))


def one_step(router_precision):
    """The first expert layer's input, weight before the step and after it, and what the tap saw."""
    settings = ["train.precision=bf16", f"moe.router_precision={router_precision}", "moe.jitter=0", "train.steps=4"]
    cfg = compose([*TINY, *settings, "parallel.zero=0"])
    mesh, device = single_process(), torch.device("cpu")
    engine = build_initialised(cfg, mesh, device)
    layer = next(module for module in engine.module.modules() if isinstance(module, MoeLayer))
    layer.tap = Tap()
    seen = {}
    layer.register_forward_pre_hook(lambda module, given: seen.update(x=given[0].detach().clone()))
    before = layer.router.weight.detach().clone()
    meter = Meter(kinds={"text": text_kind(appended(200, 0))}, layer_names=layer_names(cfg))
    train_step(engine, a_batch(), meter, lr=0.01, stop=False, cfg=cfg, mesh=mesh, device=device)
    return seen["x"].reshape(-1, D), before, layer.router.weight.detach(), layer.tap


@pytest.mark.parametrize(("router_precision", "dtype"), [("fp32", torch.float32), ("activation", torch.bfloat16)])
def test_the_named_dtype_decides(router_precision, dtype):
    x_ND, weight_DE, trained_DE, tap = one_step(router_precision)
    assert x_ND.dtype == torch.bfloat16
    assert weight_DE.dtype == torch.float32  # the compute weight stays fp32 in either
    assert tap.dtype == dtype
    routing, E = tap.routing, weight_DE.shape[1]
    want_NE = x_ND.to(dtype) @ weight_DE.to(dtype)
    torch.testing.assert_close(routing.logits_GSE.reshape(-1, E).float(), want_NE.float(), rtol=0, atol=0)
    # as Mesh-TensorFlow computes a softmax: in bf16 the two steps round twice
    gate_N, choice_N = (want_NE - want_NE.logsumexp(-1, keepdim=True)).exp().max(-1)
    kept_N = routing.slots_GSK.reshape(-1) < E * routing.capacity
    assert bool(kept_N.any())
    assert torch.equal((routing.slots_GSK.reshape(-1) // routing.capacity)[kept_N], choice_N[kept_N])
    torch.testing.assert_close(routing.gates_GSK.reshape(-1)[kept_N], gate_N[kept_N].float(), rtol=1e-6, atol=0)
    assert not torch.equal(trained_DE, weight_DE)
    assert bool(torch.isfinite(trained_DE).all())


def test_the_two_precisions_compute_other_gates_from_equal_inputs():
    (x_ND, weight_DE, _, fp32), (other_ND, same_DE, _, bf16) = one_step("fp32"), one_step("activation")
    assert torch.equal(x_ND, other_ND)
    assert torch.equal(weight_DE, same_DE)
    assert not torch.equal(fp32.routing.gates_GSK, bf16.routing.gates_GSK)
