"""Dropout of the T5 layers: keyed noise where noise is given, the identity where it is not."""

from __future__ import annotations

from torch import Tensor

from parallel.rng import Draws, keyed_dropout


def dropout(x: Tensor, p: float, noise: Draws | None, site: str, offsets: tuple[int, ...] | None = None) -> Tensor:
    """Drop elements of `x` [B, ...] with probability `p` and scale the rest by 1 / (1 - p).

    `site` names the place in its block. `offsets` says, for every dim after B, where the local slice starts in the
    logical tensor (a tensor rank's heads or feed-forward columns); None: `x` is whole.
    """
    if noise is None or p == 0.0:
        return x
    starts = offsets or (0,) * (x.dim() - 1)
    return keyed_dropout(x, p, noise, site, tuple(zip(starts, x.shape[1:], strict=True)))
