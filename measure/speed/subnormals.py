"""`bench subnormals` (CPU): attention with and without flushing subnormal numbers, which T5's unscaled scores make.

Shape suffixes: B batch, H heads, L queries and keys, K width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from measure.speed.result import Row
from measure.speed.setup import Settings, gradients_of
from measure.speed.timing import Work, clock_of, compare

SHAPE = (4, 8, 128, 64)
SPREAD = 20.0  # standard deviation of the scores; differences of 87 to 103 between scores give subnormal weights


def run(settings: Settings) -> Iterator[Row]:
    """One row: seconds without flushing over seconds with it."""
    if settings.device.type != "cpu":
        return
    q, k, v = inputs(settings.cfg.seed)
    work = gradients_of(lambda: [attention(q, k, v)], [q, k, v])
    flushed_before = _flushes()
    try:
        torch.set_flush_denormal(False)
        share = subnormal_share(q, k)
        assert share > 0, "the scores make no subnormal weights: nothing would be measured"
        comparison = compare(
            flushing(work, on=False), flushing(work, on=True), clock=clock_of(settings.device), rounds=settings.rounds
        )
    finally:
        torch.set_flush_denormal(flushed_before)
    yield Row(
        benchmark="subnormals",
        case="attention, subnormal numbers computed",
        peer="flushed to zero",
        comparison=comparison,
        numbers={"share of subnormal weights": share},
    )


def inputs(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [B, H, L, K] whose scores have the spread."""
    random = torch.Generator().manual_seed(seed)
    scale = (SPREAD**2 / SHAPE[-1]) ** 0.25  # of both factors of a sum of K products
    q, k, v = (torch.randn(SHAPE, generator=random) for _ in range(3))
    return q.mul_(scale).requires_grad_(), k.mul_(scale).requires_grad_(), v.requires_grad_()


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention without scaling, written out."""
    return (q @ k.transpose(-1, -2)).softmax(-1) @ v


def subnormal_share(q: Tensor, k: Tensor) -> float:
    """Share of attention weights that are subnormal."""
    with torch.no_grad():
        weights = (q @ k.transpose(-1, -2)).softmax(-1)
    tiny = (weights > 0) & (weights < torch.finfo(weights.dtype).tiny)
    return float(tiny.double().mean())


def flushing(work: Work, *, on: bool) -> Work:
    """`work` with the processor's switch set before it."""

    def switched() -> object:
        torch.set_flush_denormal(on)
        return work()

    return switched


def _flushes() -> bool:
    return float(torch.tensor([1e-39]) * 0.5) == 0.0
