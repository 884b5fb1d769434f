"""The forms of a feed-forward layer, dense or an expert: its matrices into d_ff, and what joins their products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from conf.schema import Ffn


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """One form: hidden = join(x @ first of `into`, x @ second, ..); the layer's output is hidden @ wo."""

    into: tuple[str, ...]  # names of the matrices
    join: Callable[..., Tensor]


def gelu(x: Tensor) -> Tensor:
    """GELU in the tanh approximation that T5 v1.1 was trained with."""
    return F.gelu(x, approximate="tanh")


def _gated(activation: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """activation(gate) * linear."""
    return lambda gate, linear: activation(gate) * linear


_ACTIVATIONS: dict[Ffn, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,  # T5 v1.0
    "gelu": gelu,
    "gelu_erf": F.gelu,
    "silu": F.silu,
}
_GATED: dict[Ffn, Ffn] = {
    "gated_relu": "relu",
    "gated_gelu": "gelu",  # T5 v1.1
    "gated_gelu_erf": "gelu_erf",
    "gated_silu": "silu",  # UL2
}
FORMS: dict[Ffn, Form] = {
    **{name: Form(into=("wi",), join=act) for name, act in _ACTIVATIONS.items()},
    **{name: Form(into=("wi_0", "wi_1"), join=_gated(_ACTIVATIONS[act])) for name, act in _GATED.items()},
}
