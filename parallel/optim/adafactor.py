"""Adafactor (Shazeer & Stern 2018, arXiv 1804.04235) without momentum, as T5 uses it, and layout-free.

The moments of every matrix are factored along its last two dims; T5's code factors the two largest dims of a tensor,
and none where the smaller is below 32.

Shape suffixes: R rows and C columns of the last two dims; any dims before them (experts) are separate matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from conf.schema import OptimConfig
from parallel.layers.sharding import mesh_axis, shard_of, sharded_axes, spec_of
from parallel.mesh import collectives
from parallel.mesh.axes import Mesh
from parallel.optim.kinds import OptimizerKind, ParamGroups

ROW = "exp_avg_sq_row"  # mean over columns: the parameter's dims without the last
COLUMN = "exp_avg_sq_col"  # mean over rows: without the last but one
FULL = "exp_avg_sq"  # vectors keep the whole second moment
LEAST = 1e-30  # of what is divided by
EPSILON_PARAMETER = 1e-3  # least RMS of a parameter that scales its step (epsilon 2)


class Adafactor(Optimizer):
    """Update x <- x - lr * max(1e-3, RMS(x)) * u / max(1, RMS(u) / clip_threshold), u = g / sqrt(v).

    `optim.epsilon` is added to squared gradients (the paper's epsilon 1).

    v decays with 1 - t**-decay_rate and, for matrices, is row mean x column mean / mean. All means run over the
    *logical* tensor: partial sums are all-reduced over the axes that cut it, so any layout gives the same update. RMS
    is taken over a whole parameter (all experts of a bank together), rows and columns per expert. `scale_parameter`
    False drops the factor max(1e-3, RMS(x)).
    """

    def __init__(self, params: ParamGroups, optim: OptimConfig, mesh: Mesh) -> None:
        super().__init__(params, {"lr": 0.0, "weight_decay": 0.0})
        self._optim = optim
        self._mesh = mesh

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient. Collective along the axes that cut parameters."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group["lr"], group["weight_decay"])

    def _update(self, parameter: Tensor, lr: float, weight_decay: float) -> None:
        state = self.state[parameter]
        if not state:
            state.update(fresh_state(parameter, 0))
        state["step"] += 1
        decay = 1.0 - state["step"] ** -self._optim.decay_rate
        assert parameter.grad is not None
        squared = parameter.grad.square().add_(self._optim.epsilon)
        update = parameter.grad * self._inverse_root(parameter, squared, state, decay)
        update.mul_(torch.clamp(self._optim.clip_threshold / self._rms(parameter, update), max=1.0))
        scale = self._rms(parameter, parameter).clamp(min=EPSILON_PARAMETER) if self._optim.scale_parameter else 1.0
        parameter.mul_(1.0 - lr * weight_decay)
        parameter.sub_(update.mul_(lr * scale))

    def _inverse_root(self, parameter: Tensor, squared: Tensor, state: dict[str, Any], decay: float) -> Tensor:
        """1 / sqrt(v) after v has taken in the squared gradient; broadcasts to the parameter's shape."""
        if FULL in state:
            state[FULL].mul_(decay).add_(squared, alpha=1.0 - decay)
            return state[FULL].rsqrt()
        row_R, column_C = state[ROW], state[COLUMN]
        row_R.mul_(decay).add_(self._mean(parameter, squared, dim=-1), alpha=1.0 - decay)
        column_C.mul_(decay).add_(self._mean(parameter, squared, dim=-2), alpha=1.0 - decay)
        mean = self._mean(parameter, row_R.unsqueeze(-1), dim=-2).unsqueeze(-1)
        return (row_R.unsqueeze(-1) / mean.clamp(min=LEAST)).rsqrt() * column_C.unsqueeze(-2).rsqrt()

    def _mean(self, parameter: Tensor, values: Tensor, *, dim: int) -> Tensor:
        """Mean over one logical dim of the parameter, which is dropped."""
        axis = mesh_axis(self._mesh, spec_of(parameter).dims[dim])
        if axis is None:
            return values.mean(dim)
        return collectives.all_reduce(values.sum(dim), axis).div_(values.shape[dim] * axis.size)

    def _rms(self, parameter: Tensor, values: Tensor) -> Tensor:
        """Root mean square over the logical tensor."""
        total = values.square().sum().reshape(1)
        for axis in sharded_axes(parameter, self._mesh):
            collectives.all_reduce(total, axis)
        count = 1
        for size in shard_of(parameter, self._mesh).global_shape:
            count *= size
        return (total / count).sqrt().clamp(min=LEAST)


def fresh_state(parameter: Tensor, step: int) -> dict[str, Any]:
    """Zero moments and the step count."""
    if not _is_factored(parameter):
        return {"step": step, FULL: torch.zeros_like(parameter)}
    *batch, rows, columns = parameter.shape
    return {
        "step": step,
        ROW: parameter.new_zeros(*batch, rows),
        COLUMN: parameter.new_zeros(*batch, columns),
    }


def moment_dims(kind: str, parameter: Tensor) -> tuple[int, ...] | None:
    """Dims of the parameter that a state tensor of this kind keeps; None: all."""
    last = parameter.dim() - 1
    dropped = {ROW: last, COLUMN: last - 1}.get(kind)
    return None if dropped is None else tuple(d for d in range(parameter.dim()) if d != dropped)


def _is_factored(parameter: Tensor) -> bool:
    """Whether the last two dims form a matrix; a bank of vectors, one an expert, is kept whole."""
    return parameter.dim() >= 2 and "experts" not in spec_of(parameter).dims[-2:]


KIND = OptimizerKind(build=Adafactor, fresh_state=fresh_state, moment_dims=moment_dims)
