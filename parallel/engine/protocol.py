"""The engine seam: what the trainer needs from whatever reduces gradients and updates weights.

Only `parallel/engine/` may import DeepSpeed. An engine owns fp32 master weights and optimizer moments in a layout
of its own (ZeRO flattens and shards them); this protocol exposes them as *local shards of logical tensors*: the
tensor- and expert-parallel slice of a parameter, whole along data parallelism.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

MASTER = "master"  # state kind of the fp32 weights; moments use the optimizer's own names: exp_avg, exp_avg_sq, ...
STEP = "step"  # kind of the number of steps taken, which `load_state` asks for once, by the name STEP too

ModuleT = TypeVar("ModuleT", bound=nn.Module, covariant=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class StateTensor:
    """One local shard of one logical state tensor, whole along dp, in fp32 or as the optimizer keeps it."""

    name: str  # parameter name, as in model.named_parameters()
    kind: str  # MASTER or a moment's name
    value: Tensor  # CPU or device; the receiver copies before it asks for the next
    dims: tuple[int, ...] | None = None  # dims of the parameter that the value keeps (factored moments); None: all


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """What one optimizer step reports."""

    grad_norm: float  # of the global gradient before clipping, over all parameters and all shards; equal on all ranks


class Engine(Protocol[ModuleT]):
    """Reduces gradients over dp and edp, clips by the global norm, updates fp32 masters, refreshes compute weights."""

    @property
    def module(self) -> ModuleT:
        """The model; its loss goes to `backward`."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Back-propagate one micro-batch. Gradients are averaged over dp x accumulation (ADR 002)."""
        ...

    def gradients_finite(self) -> Tensor:
        """After the last micro-batch and before `step`: whether this rank's share of the gradients is finite.

        A bool scalar on the device, for which nothing has waited.
        """
        ...

    def step(self, lr: float) -> StepResult:
        """Clip, update every parameter with learning rate `lr`, zero gradients. Call after the last micro-batch.

        Raises NonFiniteError on every rank, with weights and moments untouched, when the gradient norm is not finite.
        """
        ...

    def discard_gradients(self) -> None:
        """Drop accumulated gradients instead of stepping."""
        ...

    def gradients(self) -> dict[str, Tensor]:
        """For verification: this rank's local shards of the reduced, unclipped gradients in fp32 (before `step`)."""
        ...

    def read_state(self) -> Iterator[StateTensor]:
        """Collective: every rank exhausts the iterator, and runs no other collective while it does.

        Each logical shard is yielded on exactly one rank of the world: an owner in its dp (experts: edp) group, and of
        the tensor ranks that hold copies of it the first alone. Owners are balanced by bytes; other ranks take part in
        the transfer and yield nothing for that shard. Moments that do not exist yet (before the first step) are left
        out.
        """
        ...

    def load_state(self, read: Callable[[str, str], Tensor | None], *, weights_only: bool = False) -> None:
        """Copy logical state in: `read(name, kind)` gives this rank's local shard (whole along dp), None: not stored.

        Collective, but `read` is not: a rank asks only for shards of which it holds a part, in its own order.
        `read(STEP, STEP)` gives the number of steps as a scalar. Masters, moments (created when they do not exist
        yet), step counts and compute weights end as if they had been trained here. `weights_only` copies masters and
        compute weights and leaves fresh moments and step 0. Raises CheckpointError naming what is missing.
        """
        ...

    @property
    def steps_taken(self) -> int:
        """Optimizer steps so far (Adam's bias correction); set by `load_state`, kind STEP."""
        ...


def compute_dtype(precision: str) -> torch.dtype:
    """The dtype of activations and of compute weights: `bf16` or `fp32` of `train.precision`."""
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
