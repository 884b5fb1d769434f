"""What is added to attention scores: the bucketed relative position bias and the masks.

Shape suffixes: B batch, H heads of this tensor rank, Q queries, M keys.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallel.layers.sharding import ParamSpec, tag

# Far below any score, far above the overflow of bf16: a row without any visible key gives a uniform softmax, not NaN.
MASKED = -1e9


def relative_buckets(offset_QM: Tensor, *, buckets: int, max_distance: int, bidirectional: bool) -> Tensor:
    """Bucket of each offset key position - query position (T5, arXiv 1910.10683, section 2.1).

    Half of the buckets hold one small distance each; the other half grow logarithmically up to `max_distance`, and the
    last takes everything beyond. With `bidirectional` the upper half of all buckets is for keys after the query;
    otherwise later keys share bucket 0 (they are masked anyway).
    """
    if bidirectional:
        buckets //= 2
        first_QM = (offset_QM > 0).long() * buckets
        distance_QM = offset_QM.abs()
    else:
        first_QM = torch.zeros_like(offset_QM)
        distance_QM = (-offset_QM).clamp(min=0)
    exact = buckets // 2
    # fp32 on purpose: the reference computes the logarithm in fp32, and bucket borders depend on its rounding.
    ratio_QM = (distance_QM.clamp(min=1).float() / exact).log() / math.log(max_distance / exact)
    far_QM = (exact + (ratio_QM * (buckets - exact)).long()).clamp(max=buckets - 1)
    return first_QM + torch.where(distance_QM < exact, distance_QM, far_QM)


class RelativeBias(nn.Module):
    """One learned number per (bucket, head), shared by all layers of a stack; cut over heads."""

    def __init__(
        self, *, buckets: int, max_distance: int, heads: int, tp_size: int, d_model: int, bidirectional: bool
    ) -> None:
        super().__init__()
        self.buckets, self.max_distance, self.bidirectional = buckets, max_distance, bidirectional
        spec = ParamSpec(dims=("buckets", "heads"), fan_in=d_model)
        self.weight = tag(nn.Parameter(torch.empty(buckets, heads // tp_size)), spec)

    def forward(self, queries: int, keys: int, *, first_query: int = 0) -> Tensor:
        """Bias [1, H, Q, M] for queries at `first_query`, .. and keys at 0, .., in the weight's dtype."""
        settings = (self.buckets, self.max_distance, self.bidirectional)
        bucket_QM = _bucket_table(queries, keys, first_query, settings, self.weight.device)
        return F.embedding(bucket_QM, self.weight).permute(2, 0, 1)[None]


@lru_cache(maxsize=64)
def _bucket_table(
    queries: int, keys: int, first_query: int, settings: tuple[int, int, bool], device: torch.device
) -> Tensor:
    """Buckets [Q, M] on `device`, the same on every kind of device; not to be changed in place.

    Computed on the CPU and kept: some borders (distances 16, 32 and 64 of T5's encoder) are whole numbers before they
    are rounded down, and an accelerator whose logarithm is off by the last bit would run another model.
    """
    buckets, max_distance, bidirectional = settings
    query_Q1 = torch.arange(first_query, first_query + queries, device="cpu")[:, None]
    key_1M = torch.arange(keys, device="cpu")[None, :]
    bucket_QM = relative_buckets(
        key_1M - query_Q1, buckets=buckets, max_distance=max_distance, bidirectional=bidirectional
    )
    return bucket_QM.to(device)


def padding_mask(real_BM: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask [B, 1, 1, M]: 0 at real keys, `MASKED` at padding."""
    mask_BM = torch.zeros(real_BM.shape, dtype=dtype, device=real_BM.device).masked_fill(~real_BM, MASKED)
    return mask_BM[:, None, None, :]


def causal_mask(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Additive mask [1, 1, Q, M] that hides later keys."""
    later_QM = torch.ones(length, length, dtype=torch.bool, device=device).triu(1)
    return torch.zeros(length, length, dtype=dtype, device=device).masked_fill(later_QM, MASKED)[None, None]
