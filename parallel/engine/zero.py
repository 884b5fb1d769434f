"""ZeRO 1 and 2: DeepSpeed reduces, clips and steps on flat fp32 partitions; this reads and writes them by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from conf.errors import NonFiniteError
from parallel.engine.driver import Driver
from parallel.engine.fragments import FlatParameter, collect
from parallel.engine.owners import StateItem, assign_owners, read_required, read_steps
from parallel.engine.protocol import MASTER, STEP, ModuleT, StateTensor, StepResult
from parallel.layers.sharding import replica_axis, tagged_parameters
from parallel.mesh import collectives
from parallel.mesh.axes import Mesh
from parallel.optim.kinds import OptimizerKind
from parallel.optim.parameters import is_first_tensor_copy


class ZeroEngine(Driver[ModuleT]):
    """`Engine` at ZeRO 1 and 2."""

    def __init__(self, module: ModuleT, engine: Any, mesh: Mesh, kind: OptimizerKind, *, accumulation: int) -> None:
        super().__init__(module, engine, accumulation=accumulation)
        self._mesh = mesh
        self._zero = engine.optimizer
        self._kind = kind
        self._inner: torch.optim.Optimizer = engine.optimizer.optimizer
        self._flat = _locate(module, self._zero, mesh)
        # The norm shows whether a gradient overflowed, and with this the step refuses it; DeepSpeed's own search
        # through all gradients for the same answer is left out.
        self._zero.check_grad_overflow = True
        self._zero.check_overflow = lambda partition_gradients=True: None
        # ZeRO 2 would collect gradients to be reduced in a buffer of the first group's dtype, rounding the fp32
        # gradients of router and norms to bf16 (ADR 005).
        self._zero._gradient_reduction_buffer_dtype = lambda: torch.float32

    @override
    def gradients_finite(self) -> Tensor:
        # Looks at the partition of the reduced gradients that this rank holds.
        self._require_boundary()
        pieces = [piece for group in self._partitions() for piece in group if piece.numel() > 0]
        return nn.utils.get_total_norm(pieces, norm_type=float("inf")).isfinite()

    @override
    def step(self, lr: float) -> StepResult:
        for group in self._inner.param_groups:
            group["lr"] = lr
        self._take_step()
        if self._zero.overflow:
            self._steps -= 1
            raise NonFiniteError("the gradient norm is not finite; no weight was changed")
        return StepResult(grad_norm=float(self._zero._global_grad_norm))

    @override
    def discard_gradients(self) -> None:
        self._zero.zero_grad(set_to_none=True)
        for held in (self._zero.averaged_gradients, self._zero.all_grad_tensors):
            for group in held:
                held[group] = None
        self._micro = 0

    @override
    def gradients(self) -> dict[str, Tensor]:
        # Collective: whole shards are summed together from zero-filled buffers.
        self._require_boundary()
        partitions = [torch.cat([piece.flatten() for piece in group]).float() for group in self._partitions()]
        found = {}
        for where in self._flat:
            whole = torch.zeros(where.parameter.numel(), device=where.parameter.device)
            mine = where.fragment(where.axis.rank)
            if mine is not None:
                whole[mine.in_parameter] = partitions[where.group][mine.in_partition]
            found[where.name] = collectives.all_reduce(whole, where.axis).view(where.parameter.shape)
        return found

    @override
    def read_state(self) -> Iterator[StateTensor]:
        by_name = {where.name: where for where in self._flat if is_first_tensor_copy(where.parameter, self._mesh)}
        items = [
            StateItem(name=where.name, kind=kind, parameter=where.parameter, nbytes=4 * where.parameter.numel())
            for where in by_name.values()
            for kind in self._state_of(where.group)
        ]
        for item, owner in assign_owners(items, self._mesh):
            where = by_name[item.name]
            value = collect(where, self._state_of(where.group)[item.kind].detach(), owner)
            if value is not None:
                yield StateTensor(name=item.name, kind=item.kind, value=value)

    @torch.no_grad()
    @override
    def load_state(self, read: Callable[[str, str], Tensor | None], *, weights_only: bool = False) -> None:
        # Each rank copies the part that lies in its partition; compute weights are gathered.
        self._steps = 0 if weights_only else read_steps(read)
        self._inner.state.clear()
        if self._steps > 0:
            for master in self._zero.single_partition_of_fp32_groups:
                self._inner.state[master] = self._kind.fresh_state(master, self._steps)
        for where in self._flat:
            mine = where.fragment(where.axis.rank)
            if mine is None:
                continue
            for kind, partition in self._state_of(where.group).items():
                value = read_required(read, where.name, kind, tuple(where.parameter.shape))
                partition[mine.in_partition] = value.flatten()[mine.in_parameter].to(partition)
        self._zero.update_lp_params()
        self.discard_gradients()

    def _partitions(self) -> list[list[Tensor]]:
        """This rank's reduced gradients, one list per optimizer group that together fill the group's partition."""
        reduced = self._zero.averaged_gradients
        groups = [reduced.get(i) for i in range(len(self._zero.bit16_groups))]
        assert all(group is not None for group in groups), "no gradients: run backward first"
        return [list(group) for group in groups if group is not None]

    def _state_of(self, group: int) -> dict[str, Tensor]:
        """Flat partitions of an optimizer group: master and the moments that exist, without the step count."""
        master = self._zero.single_partition_of_fp32_groups[group]
        moments = self._inner.state.get(master, {})
        return {MASTER: master} | {kind: value for kind, value in moments.items() if kind != STEP}


def _locate(module: nn.Module, zero: Any, mesh: Mesh) -> list[FlatParameter]:
    """Every trained parameter's place, in model order."""
    names = {parameter: name for name, parameter, _ in tagged_parameters(module)}
    found: dict[str, FlatParameter] = {}
    for i, parameters in enumerate(zero.round_robin_bit16_groups):
        for parameter, offset in zip(parameters, zero.round_robin_bit16_offsets[i], strict=True):
            found[names[parameter]] = FlatParameter(
                name=names[parameter], parameter=parameter, group=i, offset=offset,
                partition_size=int(zero.partition_size[i]), axis=replica_axis(parameter, mesh),
            )  # fmt: skip
    return [found[name] for name in names.values() if name in found]
