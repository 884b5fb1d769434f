"""The seam by which `verify-parallel` watches routing and replays another run's: a model has none unless given one.

Shape suffixes: G groups, S tokens per group, E experts.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from model.moe.types import Routing


class RoutingTap(Protocol):
    """What one expert layer shows while it routes; called again when the layer is recomputed in backward."""

    def logits(self, logits_GSE: Tensor) -> Tensor:
        """The logits to decide by, noise included: these, or others of equal shape and dtype with their gradient."""
        ...

    def decided(self, routing: Routing) -> None:
        """What was decided for this rank's groups."""
        ...
