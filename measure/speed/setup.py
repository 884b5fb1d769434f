"""What the benchmarks of one process share: settings, and an expert layer with its dense twin and a batch for both.

Shape suffixes: B sequences, L tokens of a sequence, D d_model, G groups, S tokens per group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from conf.routing.settings import moe_rules
from conf.schema import ModelConfig, MoeConfig, RunConfig
from model.init import init_key, initialise
from model.moe.layer import MoeLayer
from model.moe.routers.route import route
from model.moe.routers.tokens import Tokens
from model.moe.types import Routing
from model.t5.feed_forward import FeedForward
from parallel.engine.protocol import compute_dtype
from parallel.layers.experts import LocalExchange
from parallel.layers.plain import PlainLayers
from parallel.layers.sharding import cast_module
from parallel.mesh.axes import single_process

CAPACITY_FACTOR = 1.25
SEQUENCE_TOKENS = 512
GROUP_SEQUENCES = 2  # 1,024 tokens, the reference's group
SEQUENCES = {"cpu": 8, "cuda": 64}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every benchmark is given."""

    cfg: RunConfig
    overrides: tuple[str, ...]  # from which `cfg` was composed
    device: torch.device
    rounds: int
    threads: int  # of each rank


@dataclass(frozen=True, kw_only=True)
class LayerCase:
    """An expert layer, a dense layer of the same operations per token, and their input; noise is off."""

    layer: MoeLayer
    dense: nn.Module
    x_BLD: Tensor
    real_BL: Tensor

    @property
    def tokens(self) -> int:
        """Tokens of the batch."""
        return self.real_BL.numel()

    @property
    def x_GSD(self) -> Tensor:
        """The input cut into groups."""
        return self.x_BLD.view(-1, GROUP_SEQUENCES * self.x_BLD.shape[1], self.x_BLD.shape[2])

    def route(self) -> Routing:
        """The layer's routing of the batch."""
        layer, x_GSD = self.layer, self.x_GSD
        real_GS = self.real_BL.view(x_GSD.shape[:2])
        tokens = Tokens(x_GSD=x_GSD, real_GS=real_GS, weights=dict(layer.router.named_parameters()))
        return route(layer.maths, tokens, layer.rules, layer.rules.slots(x_GSD.shape[1], train=True))


def layer_case(settings: Settings, experts: int, *, sequences: int | None = None) -> LayerCase:
    """A layer of the configured width with `experts` experts, in the configured precision; no padding in the batch."""
    cfg, device = settings.cfg, settings.device
    dtype = compute_dtype(cfg.train.precision)
    model, moe = single_layer(cfg, experts)
    with device:
        layer = MoeLayer(
            moe_rules(moe, "encoder"), d_model=model.d_model, d_ff=model.d_ff, ffn=model.ffn, exchange=LocalExchange()
        )
        dense = FeedForward(model, ffn=model.ffn, layers=PlainLayers())
    for module in (layer, dense):
        cast_module(module, dtype)
        initialise(module, single_process(), replace(init_key(cfg), scale=1.0))
    shape = (sequences or SEQUENCES[device.type], SEQUENCE_TOKENS, model.d_model)
    x_BLD = torch.randn(shape, generator=torch.Generator().manual_seed(cfg.seed)).to(device, dtype)
    return LayerCase(
        layer=layer,
        dense=dense,
        x_BLD=x_BLD.requires_grad_(),
        real_BL=torch.ones(shape[:2], dtype=torch.bool, device=device),
    )


def single_layer(cfg: RunConfig, experts: int) -> tuple[ModelConfig, MoeConfig]:
    """The configured model and routing with so many experts and without noise."""
    moe = replace(
        cfg.moe,
        num_experts=experts,
        capacity_factor=CAPACITY_FACTOR,
        group_sequences=GROUP_SEQUENCES,
        jitter=0.0,
        expert_dropout=0.0,
    )
    return replace(cfg.model, dropout=0.0), moe


def gradients_of(forward: Callable[[], Sequence[Tensor]], inputs: Sequence[Tensor]) -> Callable[[], object]:
    """Work that runs `forward` and then backward to all `inputs`, with ones for the gradient of every output."""
    wanted = [tensor for tensor in inputs if tensor.requires_grad]

    def work() -> object:
        outputs = [output for output in forward() if output.requires_grad]
        return torch.autograd.grad(outputs, wanted, [torch.ones_like(output) for output in outputs])

    return work
