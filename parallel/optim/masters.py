"""The optimizer of ZeRO 0: fp32 masters and gradient sums on every rank, one true norm over all shards, clip, step."""

from __future__ import annotations

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
    ) -> None:
        super().__init__([{"params": list(g.params), "weight_decay": g.weight_decay} for g in groups], {"lr": 0.0})
        self.mesh = mesh
        self.clip_norm = clip_norm
        self.grad_norm = 0.0  # of the last step, before clipping
        self.master_of: dict[Tensor, nn.Parameter] = {p: _master(p) for g in groups for p in g.params}
        self.inner = build(
            [{"params": [self.master_of[p] for p in g.params], "weight_decay": g.weight_decay} for g in groups]
        )
        self._sums: dict[Tensor, Tensor] = {}
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

    def global_norm(self) -> Tensor:
        """Norm of the gradient over all shards, each logical element counted once; fp64 scalar, equal on all ranks.

        Squares are summed in fp64: over the half million elements of a small embedding, fp32 sums were off by 5e-5.
        """
        counted = [g for p, g in self.gradient_sums().items() if is_counted(p, self.mesh)]
        device = next(iter(self.master_of)).device
        squares = torch.zeros(1, dtype=torch.float64, device=device)
        for gradient in counted:
            squares += torch.linalg.vector_norm(gradient, dtype=torch.float64).square()
        collectives.all_reduce(squares, self.mesh.world)
        return squares.sqrt().squeeze(0)

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
        if not torch.isfinite(norm):
            self.zero_grad()
            raise NonFiniteError(f"gradient norm is {self.grad_norm}; no weight was changed")
        for p, master in self.master_of.items():
            master.grad = grads[p]
        if self.clip_norm > 0:
            nn.utils.clip_grads_with_norm_(self.master_of.values(), self.clip_norm, norm)
        self.inner.step()
        self.refresh()
        self.zero_grad()

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy masters, rounded, into the compute weights."""
        for p, master in self.master_of.items():
            if master is not p:
                p.copy_(master)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget gradients and their sums."""
        self._sums.clear()
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
