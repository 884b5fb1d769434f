"""Root-mean-square norm: T5's layer norm, without mean and without bias.

Shape suffixes: B batch, L length, D d_model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallel.layers.sharding import ParamSpec, tag


class RmsNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) * weight; statistics and weight in fp32 (or wider), output in x's dtype."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        spec = ParamSpec(dims=("embed",), keep_fp32=True, decay=False, init="ones")
        self.weight = tag(nn.Parameter(torch.empty(width)), spec)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        wide = torch.promote_types(x_BLD.dtype, torch.float32)
        normed_BLD = F.rms_norm(x_BLD.to(wide), self.weight.shape, self.weight.to(wide), self.epsilon)
        return normed_BLD.to(x_BLD.dtype)
