"""The activations of feed-forward layers, dense ones and experts alike."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from conf.schema import Ffn

_GELU: Callable[[Tensor], Tensor] = partial(F.gelu, approximate="tanh")  # T5 v1.1 was trained with this form

# Of the hidden units, or of the gate that they are multiplied by.
ACTIVATIONS: dict[Ffn, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": _GELU, "gated_gelu": _GELU}
