"""What a router is given besides its rules: tokens, its own weights and state, and noise.

Shape suffixes: G groups, S tokens per group, D d_model, E experts, W width of a draw.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from conf.routing.settings import MoeRules
from parallel.rng import Draws, keyed_uniform


class Noise(Protocol):
    """Random numbers of one call, the same at every layout."""

    def uniform(self, site: str, width: int | None = None) -> Tensor:
        """Uniforms in [0, 1) in fp32, `[G, S]` or with a `width` `[G, S, W]`; sites are independent of each other."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class RouterNoise:
    """Noise keyed by sequence and position, so that it does not depend on the grouping either."""

    draws: Draws  # `rows_B`: the sequences of these groups, in order
    groups: int
    length: int  # of a sequence

    def uniform(self, site: str, width: int | None = None) -> Tensor:
        """See `Noise`."""
        ranges = ((0, self.length),) if width is None else ((0, self.length), (0, width))
        drawn = keyed_uniform(self.draws, site, ranges)
        return drawn.view(self.groups, -1, *drawn.shape[2:])


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """The tokens of a rank's groups and what its router knows about them."""

    x_GSD: Tensor  # the router's input in the dtype of the activations
    real_GS: Tensor  # bool; False at padding
    weights: Mapping[str, Tensor]  # the router's matrices [D, E] and state [E], by the names of its row
    ids_GS: Tensor | None = None  # int64 token ids, for routers whose row asks for them
    noise: Noise | None = None  # None: draw nothing
    jittered: bool = False  # `x_GSD` carries the input's jitter already
    limit_G: Tensor | None = None  # where experts choose: the slots of each expert that a group may fill
    # Mesh-TensorFlow's float mask, in which values strictly between 0 and 1 mark second-rate tokens and `real_GS` is
    # where it is 1. Recordings have it, runs do not.
    importance_GS: Tensor | None = None

    @property
    def some_GS(self) -> Tensor:
        """Tokens of importance above 0."""
        return self.real_GS if self.importance_GS is None else self.importance_GS > 0

    @property
    def importance_G(self) -> Tensor:
        """The sum of a group's importance: how many real tokens it has."""
        return (self.real_GS if self.importance_GS is None else self.importance_GS).sum(1)

    def asking(self, rules: MoeRules) -> Tensor:
        """Tokens that may take slots, bool [G, S]."""
        return self.real_GS if rules.routed == "real" else torch.ones_like(self.real_GS)
