"""The whole model on a device: against fp64 on the CPU, twice the same bits, and no wait for the device in a step."""

from __future__ import annotations

import contextlib

import pytest
import torch

from conf.compose import compose
from measure.verify.observe.batches import global_rows
from model.build import build_model, meta_model
from model.losses import LossScale, micro_batch_loss
from parallel.mesh.axes import single_process
from parallel.rng import NoiseKey
from tests.gpu.devices import EVERY_DEVICE, GPU
from tests.gpu.test_layer import CONFIGS
from tests.trainer.test_layouts import TINY

# heads wide enough for every fused attention kernel; long enough for a few of its blocks
WIDER = (*TINY, "model.d_kv=16", "data.encoder_length=96", "train.global_batch=4", "moe.capacity_factor=2.0")


def routing(name: str) -> tuple[str, ...]:
    """Settings of a row of `CONFIGS`."""
    semantics, _, router = name.partition("-")
    return f"moe={semantics}", f"moe.router={router}", "moe.group_sequences=2"


def run(device: str, dtype: torch.dtype, *overrides: str, guard=contextlib.nullcontext, warm: bool = False):
    """Loss and gradients of one micro-batch, jitter and dropout on."""
    cfg = compose([*WIDER, "parallel.ep=1", *overrides])
    module = build_model(cfg, single_process(), device=device, dtype=dtype)
    encoder, targets = (torch.from_numpy(array).to(device) for array in global_rows(cfg, 0))
    noise = NoiseKey(seed=cfg.seed, step=0, rows_B=torch.arange(cfg.train.global_batch, device=device))
    scale = LossScale(target_tokens=100, router_tokens={"encoder": 300, "decoder": 100}, replicas=1)

    def step():
        module.zero_grad()
        output = module(encoder, targets, mode="train", noise=noise)
        total = micro_batch_loss(output, scale, cfg.moe).total
        total.backward()
        return total

    if warm:
        step()  # tables are made and libraries load at the first step
    with guard():
        total = step()
    grads = {name: parameter.grad for name, parameter in module.named_parameters()}
    assert all(grad is not None for grad in grads.values())
    return {"loss": total.detach(), **grads}


@pytest.mark.parametrize("device", EVERY_DEVICE)
def test_fp32_is_fp64_on_the_cpu_to_rounding(device):
    ours, theirs = run(device, torch.float32), run("cpu", torch.float64)
    for name, expected in theirs.items():
        worst = float((ours[name].cpu().double() - expected).abs().max())
        limit = 1e-5 if name == "loss" else 1e-4
        assert worst <= limit * float(expected.abs().max()), f"{name} is off by {worst}"


TWICE = [
    pytest.param("cpu", torch.float32),
    *(pytest.param("cuda", dtype, marks=GPU) for dtype in (torch.float32, torch.bfloat16)),
]


@pytest.mark.parametrize(("device", "dtype"), TWICE)
def test_two_runs_give_the_same_bits(device, dtype):
    first, second, recomputed = (
        run(device, dtype, *more) for more in ((), (), ("train.activation_checkpointing=true",))
    )
    for name, value in first.items():
        assert torch.equal(value, second[name]), f"{name} differs between two runs"
        assert torch.equal(value, recomputed[name]), f"{name} differs with recomputation"


@contextlib.contextmanager
def no_host_sync():
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=GPU)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("recompute", ["true", "false"])
def test_no_step_waits_for_the_device(device, dtype, recompute):
    run(device, dtype, f"train.activation_checkpointing={recompute}", guard=no_host_sync, warm=True)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=GPU)])
@pytest.mark.parametrize("name", CONFIGS)
def test_no_router_waits_for_the_device(device, name):
    run(device, torch.float32, *routing(name), guard=no_host_sync, warm=True)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=GPU)])
def test_the_guard_sees_a_wait(device):
    with pytest.raises(RuntimeError, match="synchroniz"), no_host_sync():
        torch.ones(3, device=device).sum().item()


def test_nothing_in_a_step_asks_for_a_value():
    """Without a GPU: tensors on the meta device have no values, whatever needs one on the host raises."""
    cfg = compose([*WIDER, "parallel.ep=1"])
    module = meta_model(cfg, single_process())
    batch, length, targets = cfg.train.global_batch, cfg.data.encoder_length, cfg.data.decoder_length
    ids = [torch.empty(batch, n, dtype=torch.int64, device="meta") for n in (length, targets)]
    noise = NoiseKey(seed=1, step=0, rows_B=torch.empty(batch, dtype=torch.int64, device="meta"))
    output = module(*ids, mode="train", noise=noise)
    scale = LossScale(target_tokens=100, router_tokens={"encoder": 300, "decoder": 100}, replicas=1)
    micro_batch_loss(output, scale, cfg.moe).total.backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    with pytest.raises((RuntimeError, NotImplementedError)):
        output.token_loss_BT.sum().item()
