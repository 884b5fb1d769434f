"""ZeRO 0: DeepSpeed only averages gradients; `masters.MasterOptimizer` holds fp32 masters, clips and steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from parallel.engine.driver import Driver
from parallel.engine.owners import StateItem, assign_owners, read_required, read_steps
from parallel.engine.protocol import MASTER, STEP, ModuleT, StateTensor, StepResult
from parallel.layers.sharding import spec_of, tagged_parameters
from parallel.optim.kinds import OptimizerKind
from parallel.optim.masters import MasterOptimizer
from parallel.optim.parameters import is_first_tensor_copy


class ReducedMasters(MasterOptimizer):
    """The master optimizer with the method by which DeepSpeed asks for what it shall reduce in place."""

    def get_grads_for_reduction(self) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
        """Dense fp32 gradients, and expert gradients by the name of their group."""
        if not self.mesh.has_replicas:
            return [], {}
        dense: list[Tensor] = []
        experts: dict[str, list[Tensor]] = {}
        for parameter, grad in self.gradient_sums().items():
            if spec_of(parameter).is_expert:
                experts.setdefault(parameter.group_name, []).append(grad)  # type: ignore[attr-defined]
            else:
                dense.append(grad)
        return dense, experts


class MastersEngine(Driver[ModuleT]):
    """`Engine` at ZeRO 0."""

    def __init__(
        self, module: ModuleT, engine: Any, optimizer: MasterOptimizer, kind: OptimizerKind, *, accumulation: int
    ) -> None:
        super().__init__(module, engine, accumulation=accumulation)
        self._optimizer, self._kind = optimizer, kind

    @override
    def gradients_finite(self) -> Tensor:
        self._require_boundary()
        return self._optimizer.gradients_finite()

    @override
    def step(self, lr: float) -> StepResult:
        # Raises NonFiniteError on every rank, with weights untouched, when the norm is not finite.
        self._optimizer.set_lr(lr)
        self._take_step()
        return StepResult(grad_norm=self._optimizer.grad_norm)

    @override
    def discard_gradients(self) -> None:
        self._optimizer.zero_grad()
        self._micro = 0

    @override
    def gradients(self) -> dict[str, Tensor]:
        self._require_boundary()
        sums = self._optimizer.gradient_sums()
        return {name: sums[p].clone() for name, p, _ in tagged_parameters(self._module)}

    @override
    def read_state(self) -> Iterator[StateTensor]:
        # Every rank of the data axis has every shard: nothing is sent.
        mesh = self._optimizer.mesh
        items = [
            StateItem(name=name, parameter=p, kind=kind, nbytes=value.nbytes, dims=self._kind.moment_dims(kind, p))
            for name, p, _ in tagged_parameters(self._module)
            for kind, value in self._state_of(p).items()
        ]
        items = [item for item in items if is_first_tensor_copy(item.parameter, mesh, item.dims)]
        for item, owner in assign_owners(items, mesh):
            if item.axis(mesh).rank == owner:
                value = self._state_of(item.parameter)[item.kind].detach()
                yield StateTensor(name=item.name, kind=item.kind, value=value, dims=item.dims)

    @torch.no_grad()
    @override
    def load_state(self, read: Callable[[str, str], Tensor | None], *, weights_only: bool = False) -> None:
        optimizer = self._optimizer
        self._steps = 0 if weights_only else read_steps(read)
        optimizer.inner.state.clear()
        for name, p, _ in tagged_parameters(self._module):
            master = optimizer.master_of[p]
            master.copy_(read_required(read, name, MASTER, tuple(master.shape)))
            if self._steps > 0:
                optimizer.inner.state[master] = self._kind.fresh_state(master, self._steps)
            for kind, value in self._state_of(p).items():
                if kind != MASTER:
                    value.copy_(read_required(read, name, kind, tuple(value.shape)))
        optimizer.refresh()
        self.discard_gradients()

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        """The master and the moments that exist; the step count, which is one for all, is apart."""
        moments = self._optimizer.inner.state.get(self._optimizer.master_of[parameter], {})
        found: dict[str, Tensor] = {MASTER: self._optimizer.master_of[parameter]}
        return found | {kind: value for kind, value in moments.items() if kind != STEP}
