"""A third optimizer, as docs/extending.md adds one: gradient descent with momentum, by torch."""

from __future__ import annotations

import torch

from conf.optimizers import OPTIMIZERS, OptimizerRow
from parallel.optim.kinds import OptimizerKind

BUFFER = "momentum_buffer"


def build(groups, optim, mesh):
    return torch.optim.SGD(groups, lr=0.0, momentum=optim.beta1)


def fresh_state(parameter, step):
    return {BUFFER: torch.zeros_like(parameter)}


KIND = OptimizerKind(build=build, fresh_state=fresh_state)


def register() -> None:
    """The row, in this process."""
    OPTIMIZERS["momentum"] = OptimizerRow(module=__name__)
