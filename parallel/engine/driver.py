"""Drives a DeepSpeed engine through micro-batches: what ZeRO 0, 1 and 2 have in common."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from typing_extensions import override

from parallel.engine.protocol import Engine, ModuleT


class Driver(Engine[ModuleT]):
    """Backward of micro-batches with an explicit accumulation boundary.

    DeepSpeed counts its own micro-steps in `step`, which our caller calls once per optimizer step; and it notices the
    start and the end of a backward by hooks on tensors of a forward that it ran itself. All are therefore said here.
    """

    def __init__(self, module: ModuleT, engine: Any, *, accumulation: int) -> None:
        self._module = module
        self._ds = engine
        self._accumulation = accumulation
        self._micro = 0  # backwards since the last step
        self._steps = 0

    @property
    @override
    def module(self) -> ModuleT:
        return self._module

    @property
    @override
    def steps_taken(self) -> int:
        return self._steps

    @override
    def backward(self, loss: Tensor) -> None:
        # DeepSpeed divides the loss by accumulation and reduces after the last micro-batch.
        assert self._micro < self._accumulation, f"step is due after {self._accumulation} micro-batches"
        self._micro += 1
        self._ds.set_gradient_accumulation_boundary(self._micro == self._accumulation)
        if self._ds.zero_optimization():
            self._ds._backward_prologue()
        self._ds.backward(loss)
        if self._ds.zero_optimization():
            self._ds.optimizer.clear_backward_seen_flag()

    def _require_boundary(self) -> None:
        assert self._micro == self._accumulation, f"{self._micro} of {self._accumulation} micro-batches were run"

    def _take_step(self) -> None:
        self._require_boundary()
        self._micro = 0  # also when the step refuses non-finite gradients: they are gone then
        self._ds.step()
        self._steps += 1
