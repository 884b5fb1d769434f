"""The expert layer on a device against fp64 on the CPU: decisions as integers, values and gradients to tolerance.

Every router and semantics that the configuration knows and accepts together is tried.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace

import pytest
import torch

from conf.compose import compose
from conf.routing.routers import ROUTERS
from conf.schema import RunConfig
from model.init import InitKey, initialise
from model.moe.layer import MoeLayer
from parallel.layers.sharding import cast_module
from parallel.mesh.axes import single_process
from tests.gpu.devices import EVERY_DEVICE
from tests.model.moe.build import layer_noise, layer_of

ROWS, LENGTH, WIDTH = 8, 12, 16
SMALL = (
    f"model.d_model={WIDTH}", "model.d_ff=24", "moe.num_experts=4", "moe.group_sequences=2", "moe.capacity_factor=1.0",
    "moe.min_expert_capacity=1", "train.global_batch=8",
)  # fmt: skip


def accepted() -> dict[str, RunConfig]:
    """Configurations of an expert layer, by the names of semantics and router."""
    pairs = [(semantics, router) for router, row in ROUTERS.items() for semantics in row.under]
    return {
        f"{semantics}-{router}": compose([*SMALL, f"moe={semantics}", f"moe.router={router}", "moe.group_sequences=2"])
        for semantics, router in pairs
    }


CONFIGS = accepted()


class Watch:
    """Keeps what a layer decided."""

    def logits(self, logits_GSE):
        return logits_GSE

    def decided(self, routing):
        self.routing = routing


def whole_numbers(routing) -> dict[str, torch.Tensor]:
    """Every integer or bool tensor of a routing decision, on the CPU."""
    assert is_dataclass(routing)
    values = {field.name: getattr(routing, field.name) for field in fields(routing)}
    tensors = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
    return {name: value.cpu() for name, value in tensors.items() if not value.is_floating_point()}


def layer_on(cfg: RunConfig, device: str, dtype: torch.dtype, *, rounded: torch.dtype) -> tuple[MoeLayer, Watch]:
    """A layer whose expert weights were rounded to `rounded` first, so that all precisions hold equal weights."""
    layer = layer_of(cfg.model, cfg.moe)
    initialise(layer, single_process(), InitKey(seed=3, scale=1.0, rules=layer.rules.init))
    cast_module(layer, rounded)
    # eighths: sums of their products are exact in fp32 in every order, ties included
    layer.router.weight.data = (layer.router.weight.data * 8).round() / 8
    cast_module(layer, dtype)
    layer.to(device)
    watch = Watch()
    layer.tap = watch
    return layer, watch


def batch(device: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Input in eighths, real tokens, and a gradient of the output."""
    random = torch.Generator().manual_seed(5)
    x = (torch.randn(ROWS, LENGTH, WIDTH, generator=random) * 8).round() / 8
    real = torch.rand(ROWS, LENGTH, generator=random) > 0.2
    cotangent = torch.randn(ROWS, LENGTH, WIDTH, generator=random).bfloat16()
    return x.to(device, dtype).requires_grad_(), real.to(device), cotangent.to(device, dtype)


def outcome(cfg: RunConfig, device: str, dtype: torch.dtype, *, rounded: torch.dtype, noise: bool):
    """Decisions, and everything with a fractional part as fp64 on the CPU."""
    layer, watch = layer_on(cfg, device, dtype, rounded=rounded)
    x, real, cotangent = batch(device, dtype)
    draws = layer_noise(torch.arange(ROWS, device=device)) if noise else None
    y, routing = layer(x, real, mode="train", noise=draws)
    ((y * cotangent).sum() + 0.3 * routing.aux_loss + 0.1 * routing.z_sum).backward()
    assert x.grad is not None
    values = {"y": y.detach(), "x.grad": x.grad, "aux": routing.aux_loss.detach(), "z": routing.z_sum.detach()}
    values |= {f"{name}.grad": parameter.grad for name, parameter in layer.named_parameters()}
    assert x.device.type == y.device.type == torch.device(device).type
    return whole_numbers(watch.routing), {name: value.cpu().double() for name, value in values.items()}


def check(ours, theirs, tolerance: float) -> None:
    for name, (integers, expected) in {name: (ours[0][name], theirs[0][name]) for name in theirs[0]}.items():
        assert torch.equal(integers, expected), f"{name}: a decision differs"
    for name, expected in theirs[1].items():
        worst = float((ours[1][name] - expected).abs().max())
        assert worst <= tolerance * float(expected.abs().max()), f"{name} is off by {worst}"


@pytest.mark.parametrize("device", EVERY_DEVICE)
@pytest.mark.parametrize("name", CONFIGS)
def test_fp32_is_fp64_on_the_cpu_to_rounding(device, name):
    cfg = CONFIGS[name]
    ours = outcome(cfg, device, torch.float32, rounded=torch.float32, noise=False)
    theirs = outcome(cfg, "cpu", torch.float64, rounded=torch.float32, noise=False)
    assert set(ours[0]) == set(theirs[0]) != set()
    check(ours, theirs, 1e-5)


@pytest.mark.parametrize("device", EVERY_DEVICE)
def test_jitter_and_expert_dropout_are_the_same_noise(device):
    cfg = next(iter(CONFIGS.values()))
    cfg = replace(cfg, moe=replace(cfg.moe, jitter=0.2, expert_dropout=0.3))
    ours = outcome(cfg, device, torch.float32, rounded=torch.float32, noise=True)
    theirs = outcome(cfg, "cpu", torch.float64, rounded=torch.float32, noise=True)
    check(ours, theirs, 1e-5)
    quiet = outcome(cfg, "cpu", torch.float64, rounded=torch.float32, noise=False)
    assert not torch.equal(theirs[1]["y"], quiet[1]["y"]), "there was noise"


@pytest.mark.parametrize("device", EVERY_DEVICE)
def test_bf16_decides_as_fp64_and_stays_near(device):
    cfg = next(iter(CONFIGS.values()))
    ours = outcome(cfg, device, torch.bfloat16, rounded=torch.bfloat16, noise=False)
    theirs = outcome(cfg, "cpu", torch.float64, rounded=torch.bfloat16, noise=False)
    check(ours, theirs, 3e-2)


@pytest.mark.parametrize("name", CONFIGS)
def test_no_router_asks_for_a_value(name):
    """Without a GPU: tensors on the meta device have no values, whatever needs one on the host raises."""
    cfg = CONFIGS[name]
    layer = layer_of(cfg.model, cfg.moe).to("meta")
    x = torch.empty(ROWS, LENGTH, WIDTH, device="meta", requires_grad=True)
    real = torch.empty(ROWS, LENGTH, dtype=torch.bool, device="meta")
    draws = layer_noise(torch.empty(ROWS, dtype=torch.int64, device="meta"))
    y, routing = layer(x, real, mode="train", noise=draws)
    (y.sum() + routing.aux_loss + routing.z_sum).backward()
    assert layer.experts.wo.grad.shape == layer.experts.wo.shape
    with pytest.raises((RuntimeError, NotImplementedError)):
        y.sum().item()
