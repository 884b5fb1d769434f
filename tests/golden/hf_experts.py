"""What experts of a recorded Hugging Face model did: which took no token, and which therefore have no gradient."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from model.moe.types import Routing
from tests.golden.compare import Comparison


@dataclass(kw_only=True)
class Watch:
    """Keeps what one expert layer decided."""

    seen: list[Routing] = field(default_factory=list)

    def logits(self, logits_GSE: Tensor) -> Tensor:
        return logits_GSE

    def decided(self, routing: Routing) -> None:
        self.seen.append(routing)


def idle_experts(watches: dict[str, Watch]) -> tuple[str, ...]:
    """Beginnings of the library's names of the experts that kept no token."""
    found = []
    for router, watch in watches.items():
        (routing,) = watch.seen
        _, E, C = routing.tokens_GEC.shape
        busy = set((routing.slots_GSK[routing.slots_GSK < E * C] // C).tolist())
        found += [f"{router.removesuffix('router')}experts.expert_{e}." for e in range(E) if e not in busy]
    return tuple(found)


def absent_gradients(none: set[str], zero: set[str], recorded: set[str]) -> Comparison:
    """The recorded list of parameters without a gradient: `none` must be in it, others of `zero` may be.

    An expert whose tokens all stay without effect on the loss (padding behind the last attention) has a gradient of
    zeros, which a recorder may or may not count as none.
    """
    wrong = (none - recorded) | (recorded - none - zero)
    return Comparison(array="no_grad_parameters", error=float(len(wrong)), limit=0)
