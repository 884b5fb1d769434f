"""The reference's optimizers, on whole tensors in one process: torch's AdamW, and Adafactor written down plainly.

Shape suffixes: R rows and C columns of the last two dims; dims before them (experts) are separate matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from conf.errors import ConfigError
from conf.schema import OptimConfig


def build_reference(optim: OptimConfig, masters: Mapping[str, Tensor], decayed: Mapping[str, bool]) -> Optimizer:
    """The optimizer of `optim` over named fp32 masters; weight decay where `decayed` says so.

    Raises ConfigError for an optimizer that has no reference here.
    """
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in masters.items() if decayed[name]], "weight_decay": optim.weight_decay},
        {"params": [p for name, p in masters.items() if not decayed[name]], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if optim.name not in REFERENCES:
        raise ConfigError("optim.name", got=optim.name, needs="one with a reference: " + ", ".join(REFERENCES))
    return REFERENCES[optim.name](groups, optim)


def _adamw(groups: list[dict[str, Any]], optim: OptimConfig) -> Optimizer:
    return torch.optim.AdamW(groups, lr=0.0, betas=(optim.beta1, optim.beta2), eps=optim.epsilon)


class PlainAdafactor(Optimizer):
    """Adafactor without momentum (Shazeer & Stern 2018, algorithms 4 and 5) for tensors that nobody has cut."""

    def __init__(self, groups: list[dict[str, Any]], optim: OptimConfig) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})
        self._settings = optim

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """Update every parameter."""
        for group in self.param_groups:
            for x in group["params"]:
                state = self.state[x]
                state["step"] = state.get("step", 0) + 1
                self._update(x, state, lr=group["lr"], weight_decay=group["weight_decay"])

    def _update(self, x: Tensor, state: dict[str, Any], *, lr: float, weight_decay: float) -> None:
        settings = self._settings
        assert x.grad is not None
        keep = 1.0 - state["step"] ** -settings.decay_rate
        squared = x.grad**2 + settings.epsilon
        if x.dim() < 2:
            state["exp_avg_sq"] = _mixed(state.get("exp_avg_sq"), squared, keep)
            v = state["exp_avg_sq"]
        else:
            row_R = state["exp_avg_sq_row"] = _mixed(state.get("exp_avg_sq_row"), squared.mean(-1), keep)
            column_C = state["exp_avg_sq_col"] = _mixed(state.get("exp_avg_sq_col"), squared.mean(-2), keep)
            rows, columns = row_R.double(), column_C.double()  # in fp32 the product of two empty rows' means is 0
            v = rows[..., :, None] * columns[..., None, :] / rows.mean(-1)[..., None, None]
        update = (x.grad / v.sqrt()).to(x.dtype)
        update = update / max(1.0, float(_rms(update)) / settings.clip_threshold)
        scale = max(1e-3, float(_rms(x))) if settings.scale_parameter else 1.0
        x.mul_(1.0 - lr * weight_decay).sub_(lr * scale * update)


def _mixed(old: Tensor | None, new: Tensor, keep: float) -> Tensor:
    return (1.0 - keep) * new + (keep * old if old is not None else 0.0)


def _rms(x: Tensor) -> Tensor:
    return (x**2).mean().sqrt()


# `optim.name` -> what it is on whole tensors.
REFERENCES: dict[str, Callable[[list[dict[str, Any]], OptimConfig], Optimizer]] = {
    "adamw": _adamw,
    "adafactor": PlainAdafactor,
}
