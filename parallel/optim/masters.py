"""The optimizer of ZeRO 0: fp32 masters and gradient sums on every rank, one true norm over all shards, clip, step."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from conf.errors import NonFiniteError
from parallel.layers.sharding import spec_of, tag
from parallel.mesh import collectives
from parallel.mesh.axes import Mesh
from parallel.optim.kinds import ParamGroups
from parallel.optim.parameters import OptimGroup, is_counted

ROW = 1024  # elements added up in fp32


class MasterOptimizer(Optimizer):
    """Wraps an optimizer over fp32 masters of the compute parameters.

    A parameter that is fp32 already is its own master. Gradients of lower precision are summed over micro-batches in
    fp32 and leave `.grad`, so that nothing is rounded but the gradient of one micro-batch. Whoever reduces gradients
    (the engine) takes `gradient_sums` and changes them in place.
    """

    def __init__(
        self,
        groups: list[OptimGroup],
        build: Callable[[ParamGroups], Optimizer],
        mesh: Mesh,
        *,
        clip_norm: float,
        scales_gradients: bool = False,
    ) -> None:
        """`scales_gradients`: what is built divides gradients by its `grad_scale`, so that clipping needs no pass."""
        super().__init__([{"params": list(g.params), "weight_decay": g.weight_decay} for g in groups], {"lr": 0.0})
        self.mesh = mesh
        self.clip_norm, self._scales_gradients = clip_norm, scales_gradients
        self.grad_norm = 0.0  # of the last step, before clipping
        self.master_of: dict[Tensor, nn.Parameter] = {p: _master(p) for g in groups for p in g.params}
        self.inner = build(
            [{"params": [self.master_of[p] for p in g.params], "weight_decay": g.weight_decay} for g in groups]
        )
        self._sums: dict[Tensor, Tensor] = {}
        self._squares: Tensor | None = None  # of the gradients as they are; None: not counted yet
        for p, master in self.master_of.items():
            if master is not p:
                p.register_post_accumulate_grad_hook(self._add_to_sum)

    def _add_to_sum(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        if parameter in self._sums:
            self._sums[parameter].add_(parameter.grad)
        else:
            self._sums[parameter] = parameter.grad.float()
        parameter.grad = None

    def gradient_sums(self) -> dict[Tensor, Tensor]:
        """fp32 gradient of every parameter, summed over micro-batches; zeros where backward reached none."""
        sums: dict[Tensor, Tensor] = {}
        for p, master in self.master_of.items():
            grad = p.grad if master is p else self._sums.get(p)
            if grad is None:
                grad = torch.zeros_like(master)
                if master is p:
                    p.grad = grad
                else:
                    self._sums[p] = grad
            sums[p] = grad
        return sums

    def gradients_finite(self) -> Tensor:
        """Whether all gradients of this rank are finite, a bool scalar on its device.

        What was added up for it counts for `step` too: gradients may not change between.
        """
        self._squares = self._sum_squares()
        return self._squares.isfinite().all()

    def global_norm(self) -> Tensor:
        """Norm of the gradient over all shards, each logical element counted once; fp64 scalar, equal on all ranks."""
        counted = (self._sum_squares() if self._squares is None else self._squares)[:1]
        collectives.all_reduce(counted, self.mesh.world)
        return counted.sqrt().squeeze(0)

    def _sum_squares(self) -> Tensor:
        """fp64 [2]: of the elements that this rank counts, and of its copies of what another tensor rank counts."""
        sums = torch.zeros(2, dtype=torch.float64, device=next(iter(self.master_of)).device)
        for p, gradient in self.gradient_sums().items():
            sums[0 if is_counted(p, self.mesh) else 1] += sum_of_squares(gradient)
        return sums

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """Clip by the true norm, update masters, refresh compute weights, forget gradients.

        Raises NonFiniteError on every rank, with nothing changed but the gradients forgotten, when the norm is not
        finite.
        """
        assert closure is None
        norm = self.global_norm()
        self.grad_norm = float(norm)
        grads = self.gradient_sums()
        if not math.isfinite(self.grad_norm):
            self.zero_grad()
            raise NonFiniteError(f"gradient norm is {self.grad_norm}; no weight was changed")
        for p, master in self.master_of.items():
            master.grad = grads[p]
        self._clip(norm)
        self.inner.step()
        self.refresh()
        self.zero_grad()

    def _clip(self, norm: Tensor) -> None:
        """As torch's `clip_grads_with_norm_`, without a pass of its own where the optimizer can divide."""
        if self.clip_norm <= 0:
            return
        if self._scales_gradients:
            too_long = ((norm + 1e-6) / self.clip_norm).clamp(min=1.0)
            self.inner.grad_scale = too_long.float()  # type: ignore[attr-defined]
        else:
            nn.utils.clip_grads_with_norm_(self.master_of.values(), self.clip_norm, norm)

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy masters, rounded, into the compute weights."""
        for p, master in self.master_of.items():
            if master is not p:
                p.copy_(master)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget gradients and their sums."""
        self._sums.clear()
        self._squares = None
        for p, master in self.master_of.items():
            p.grad = None
            master.grad = None

    def set_lr(self, lr: float) -> None:
        """Learning rate of the next step, in every group."""
        for group in [*self.param_groups, *self.inner.param_groups]:
            group["lr"] = lr


def _master(parameter: nn.Parameter) -> nn.Parameter:
    if parameter.dtype == torch.float32:
        return parameter
    return tag(nn.Parameter(parameter.detach().float()), spec_of(parameter))


def sum_of_squares(values: Tensor) -> Tensor:
    """fp64 scalar. Rows of `ROW` elements are added up in fp32, and their sums in fp64: one pass at full speed.

    Over the half million elements of a small embedding, a sum in fp32 alone was off by 5e-5.
    """
    flat = values.reshape(-1)
    whole = len(flat) // ROW * ROW
    rows = torch.linalg.vector_norm(flat[:whole].view(-1, ROW), dim=1).double()
    rest = torch.linalg.vector_norm(flat[whole:], dtype=torch.float64)
    return rows.square().sum() + rest.square()
