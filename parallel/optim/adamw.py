"""AdamW with decoupled weight decay (Loshchilov & Hutter 2019, arXiv 1711.05101): torch's own, fused into one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from conf.schema import OptimConfig
from parallel.mesh.axes import Mesh
from parallel.optim.kinds import OptimizerKind, ParamGroups


def build(groups: ParamGroups, optim: OptimConfig, mesh: Mesh) -> torch.optim.AdamW:
    """The same at every layout: the update is element by element."""
    betas = (optim.beta1, optim.beta2)
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=optim.epsilon, weight_decay=0.0, fused=True)


def fresh_state(parameter: Tensor, step: int) -> dict[str, Any]:
    """Zero moments and the step count."""
    return {
        "step": torch.tensor(float(step), device=parameter.device),
        "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
    }


KIND = OptimizerKind(build=build, fresh_state=fresh_state, scales_gradients=True)
