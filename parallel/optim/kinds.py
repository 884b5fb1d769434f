"""What engines need to know of an optimizer, whichever it is; the table of names is `conf.optimizers`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from conf.optimizers import OPTIMIZERS
from conf.schema import OptimConfig
from parallel.mesh.axes import Mesh

ParamGroups = list[dict[str, Any]]


def every_dim(kind: str, parameter: Tensor) -> None:
    """`moment_dims` of an optimizer whose moments have the parameter's shape."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerKind:
    """How to build an optimizer and its state. Parameters are fp32 masters: whole shards (ZeRO 0) or flat partitions.

    The learning rate is set in every group before each step. State tensors other than "step" are saved by name.
    """

    build: Callable[[ParamGroups, OptimConfig, Mesh], Optimizer]
    # State of a parameter after this many steps with every moment zero, so that a checkpoint can be loaded into it.
    fresh_state: Callable[[Tensor, int], dict[str, Any]]
    # Whether `step` divides gradients by the optimizer's `grad_scale`, a scalar tensor, in the pass it makes anyway.
    scales_gradients: bool = False
    # Dims of the parameter that the state tensor of this name keeps (a factored moment lacks one); None: all.
    moment_dims: Callable[[str, Tensor], tuple[int, ...] | None] = every_dim


def optimizer_kind(name: str) -> OptimizerKind:
    """The optimizer that `optim.name` means."""
    kind = importlib.import_module(OPTIMIZERS[name].module).KIND
    assert isinstance(kind, OptimizerKind), f"KIND of {OPTIMIZERS[name].module} is {kind!r}"
    return kind
