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


def gated_gelu(gate: Tensor, linear: Tensor) -> Tensor:
    """gelu(gate) * linear."""
    return gelu(gate) * linear


FORMS: dict[Ffn, Form] = {
    "relu": Form(into=("wi",), join=F.relu),  # T5 v1.0
    "gelu": Form(into=("wi",), join=gelu),
    "gated_gelu": Form(into=("wi_0", "wi_1"), join=gated_gelu),  # T5 v1.1
}
