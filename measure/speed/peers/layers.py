"""Expert layers of other libraries at the width of ours, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import torch
from torch import nn

from measure.speed.setup import CAPACITY_FACTOR, LayerCase, gradients_of
from measure.speed.timing import Work
from parallel.engine.deepspeed import prepare_process


def deepspeed_layer(case: LayerCase) -> Work:
    """DeepSpeed's MoE, top 1 with our capacity, tokens taken in their order."""
    prepare_process(on_gpu=case.x_BLD.is_cuda)
    import deepspeed
    from deepspeed.moe.layer import MoE

    deepspeed.init_distributed(dist_init_required=False, verbose=False)
    layer = MoE(
        hidden_size=case.x_BLD.shape[-1],
        expert=_expert(case),
        num_experts=case.layer.rules.num_experts,
        k=1,
        capacity_factor=CAPACITY_FACTOR,
        use_rts=False,
    )
    layer.set_deepspeed_parallelism()
    layer.to(case.x_BLD.device, case.x_BLD.dtype)

    def forward() -> list[torch.Tensor]:
        y_BLD, aux_loss, _ = layer(case.x_BLD)
        return [y_BLD, aux_loss]

    return gradients_of(forward, [case.x_BLD, *layer.parameters()])


def st_moe_layer(case: LayerCase) -> Work:
    """st-moe-pytorch's MoE with its own experts: top 2, which is the least it has."""
    layer = (
        import_module("st_moe_pytorch")
        .MoE(
            dim=case.x_BLD.shape[-1],
            num_experts=case.layer.rules.num_experts,
            gating_top_n=2,
            capacity_factor_train=CAPACITY_FACTOR,
        )
        .to(case.x_BLD.device, case.x_BLD.dtype)
    )

    def forward() -> list[torch.Tensor]:
        result = layer(case.x_BLD)
        return [result.outputs, result.total_aux_loss]

    return gradients_of(forward, [case.x_BLD, *layer.parameters()])


# Package -> what it is called, and how it is built.
LAYERS: dict[str, tuple[str, Callable[[LayerCase], Work]]] = {
    "deepspeed": ("DeepSpeed's MoE", deepspeed_layer),
    "st_moe_pytorch": ("st-moe-pytorch's MoE, top 2", st_moe_layer),
}


def _expert(case: LayerCase) -> nn.Module:
    width, hidden = case.x_BLD.shape[-1], case.layer.experts.wo.shape[-2]
    return nn.Sequential(nn.Linear(width, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, width, bias=False))
