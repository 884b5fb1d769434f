"""Small expert layers with known weights, in one process or on ranks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from conf.routing.routers import ROUTERS
from conf.routing.settings import moe_rules
from conf.schema import CapacityName, DefectsName, Ffn, ModelConfig, MoeConfig, SemanticsName, Stack
from model.moe.experts import DROPOUT
from model.moe.layer import MoeLayer
from model.moe.routers.numerics import JITTER
from model.moe.types import LayerRouting, RouteMode
from parallel.layers.experts import ExpertExchange, LocalExchange
from parallel.layers.sharding import shard_of, spec_of
from parallel.mesh.axes import Mesh, single_process
from parallel.rng import Draws, NoiseKey, NoiseSites
from tests.settings import MODEL, MOE

D_MODEL, D_FF, LENGTH, BATCH = 6, 8, 5, 8


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What a layer test varies besides the layout."""

    experts: int = 4
    group_sequences: int = 1
    capacity: CapacityName = "bounded"
    capacity_factor: float = 1.0
    ffn: Ffn = "relu"
    jitter: float = 0.0
    expert_dropout: float = 0.0
    to_one_expert: bool = False  # a router that sends every token to expert 1
    empty_rows: int = 0  # the first rows of the batch are padding only
    mode: RouteMode = "train"
    router: str = "switch"
    semantics: SemanticsName = "mesh_tf"
    defects: DefectsName = "mended"


def model_config(ffn: Ffn = "relu", d_model: int = D_MODEL, d_ff: int = D_FF) -> ModelConfig:
    return replace(MODEL, ffn=ffn, d_model=d_model, d_ff=d_ff, init_scale=0.1)


def moe_config(v: Variant, *, min_expert_capacity: int = 1) -> MoeConfig:
    return replace(
        MOE, semantics=v.semantics, defects=v.defects, router=v.router, num_experts=v.experts,
        capacity=v.capacity, capacity_factor=v.capacity_factor, min_expert_capacity=min_expert_capacity,
        group_sequences=v.group_sequences, jitter=v.jitter, expert_dropout=v.expert_dropout,
    )  # fmt: skip


def layer_of(
    model: ModelConfig, moe: MoeConfig, *, stack: Stack = "encoder", exchange: ExpertExchange | None = None
) -> MoeLayer:
    """The expert layer of a configuration, its weights not set."""
    rules = moe_rules(moe, stack)
    exchange = exchange or LocalExchange()
    return MoeLayer(rules, d_model=model.d_model, d_ff=model.d_ff, ffn=model.ffn, exchange=exchange)


def build_layer(v: Variant, *, exchange: ExpertExchange | None = None, mesh: Mesh | None = None) -> MoeLayer:
    """An fp64 layer whose logical weights depend on the variant only."""
    layer = layer_of(model_config(v.ffn), moe_config(v), exchange=exchange)
    layer.double()
    mesh = mesh or single_process()
    for seed, (name, parameter) in enumerate(sorted(layer.named_parameters())):
        shard = shard_of(parameter, mesh)
        logical = torch.randn(shard.global_shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        if name == "router.weight" and v.to_one_expert:
            logical = logical * 0.01
            logical[0, 1] = 50.0  # the first input feature is positive, see `batch`
        parameter.data.copy_(logical[shard.slices])
        assert spec_of(parameter).fan_in is not None
    return layer


def batch(v: Variant) -> tuple[Tensor, Tensor, Tensor]:
    """x [B, L, D], real [B, L] and a cotangent of the output, for the whole data-parallel world."""
    random = torch.Generator().manual_seed(99)
    x = torch.randn(BATCH, LENGTH, D_MODEL, generator=random, dtype=torch.float64)
    x[..., 0] = x[..., 0].abs() + 0.5
    real = torch.rand(BATCH, LENGTH, generator=random) > 0.2
    real[: v.empty_rows] = False
    return x, real, torch.randn(BATCH, LENGTH, D_MODEL, generator=random, dtype=torch.float64)


def token_ids() -> Tensor:
    """Ids of the batch's tokens, for routers that read them."""
    return torch.randint(0, 50, (BATCH, LENGTH), generator=torch.Generator().manual_seed(98))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Everything a layer run produces for some rows of the batch."""

    y: Tensor
    grad_x: Tensor
    routing: LayerRouting
    grads: dict[str, Tensor]


def layer_noise(rows_B: Tensor, *, seed: int = 3, step: int = 7) -> Draws:
    """Noise for an expert layer with any of the routers."""
    sites = (JITTER, DROPOUT, *(site for row in ROUTERS.values() for site in row.noise))
    key = NoiseKey(seed=seed, step=step, rows_B=rows_B)
    return NoiseSites({"encoder.1": sites}).draws(key).of("encoder.1")


def run_layer(layer: MoeLayer, v: Variant, rows: slice) -> Outcome:
    """Forward and backward of sum(y * cotangent) + 0.3 aux + 0.1 z over `rows` of the batch."""
    x, real, cotangent = batch(v)
    x = x[rows].clone().requires_grad_()
    noise = layer_noise(torch.arange(BATCH)[rows])
    y, routing = layer(x, real[rows], mode=v.mode, noise=noise, ids_BL=token_ids()[rows])
    ((y * cotangent[rows]).sum() + 0.3 * routing.aux_loss + 0.1 * routing.z_sum).backward()
    grads = {}
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        grads[name] = parameter.grad
    assert x.grad is not None
    return Outcome(y=y.detach(), grad_x=x.grad, routing=detached(routing), grads=grads)


def detached(routing: LayerRouting) -> LayerRouting:
    return replace(routing, aux_loss=routing.aux_loss.detach(), z_sum=routing.z_sum.detach())
