"""Drives a DeepSpeed engine through micro-batches: what ZeRO 0, 1 and 2 have in common."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Driver:
    """Forward and backward of micro-batches with an explicit accumulation boundary.

    DeepSpeed counts its own micro-steps in `step`, which our caller calls once per optimizer step; and it notices the
    start of a backward by hooks on tensors it finds in the output, which it does not find in a dataclass. Both are
    therefore said here explicitly.
    """

    def __init__(self, module: nn.Module, engine: Any, *, accumulation: int) -> None:
        self._module = module
        self._ds = engine
        self._accumulation = accumulation
        self._micro = 0  # backwards since the last step
        self._steps = 0

    @property
    def module(self) -> nn.Module:
        """See `Engine`."""
        return self._module

    @property
    def steps_taken(self) -> int:
        """See `Engine`."""
        return self._steps

    def forward(self, *args: object, **kwargs: object) -> object:
        """See `Engine`."""
        if self._ds.zero_optimization():
            self._ds.optimizer.clear_backward_seen_flag()
        return self._module(*args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        """See `Engine`. The engine divides the loss by accumulation and reduces after the last micro-batch."""
        assert self._micro < self._accumulation, f"step is due after {self._accumulation} micro-batches"
        self._micro += 1
        self._ds.set_gradient_accumulation_boundary(self._micro == self._accumulation)
        if self._ds.zero_optimization():
            self._ds._backward_prologue()
        self._ds.backward(loss)

    def _require_boundary(self) -> None:
        assert self._micro == self._accumulation, f"{self._micro} of {self._accumulation} micro-batches were run"

    def _take_step(self) -> None:
        self._require_boundary()
        self._micro = 0  # also when the step refuses non-finite gradients: they are gone then
        self._ds.step()
        self._steps += 1
