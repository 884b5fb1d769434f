"""The learning rate as a function of the step.

Steps count from 1: the rate at step s is the one of the s-th optimizer update. Linear warm-up reaches `lr` at step
`warmup_steps` and is above 0 at step 1; flat warm-up is at `lr` all the time. Every schedule is continuous there. At
and after the last step the decaying schedules stay at their floor, `min_lr_ratio * lr`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from conf.schema import ScheduleConfig


def learning_rate(cfg: ScheduleConfig, step: int, total_steps: int) -> float:
    """Rate of update `step` (from 1) of a run of `total_steps`."""
    assert step >= 1, f"steps count from 1, got {step}"
    warmup = cfg.warmup_steps
    if step < warmup and cfg.warmup_shape == "linear":
        return cfg.lr * step / warmup
    return cfg.lr * _SHAPES[cfg.name](cfg, max(step, warmup), total_steps)


def _rsqrt(cfg: ScheduleConfig, step: int, total_steps: int) -> float:
    # scaled so that the value at the end of warm-up is lr; with lr = 1 / sqrt(warmup) it is 1 / sqrt(step)
    return math.sqrt(max(cfg.warmup_steps, 1) / step)


def _constant(cfg: ScheduleConfig, step: int, total_steps: int) -> float:
    return 1.0


def _cosine(cfg: ScheduleConfig, step: int, total_steps: int) -> float:
    done = _progress(cfg, step, cfg.warmup_steps, total_steps)
    return _towards_floor(cfg, 0.5 * (1 + math.cos(math.pi * done)))


def _linear(cfg: ScheduleConfig, step: int, total_steps: int) -> float:
    return _towards_floor(cfg, 1 - _progress(cfg, step, cfg.warmup_steps, total_steps))


def _wsd(cfg: ScheduleConfig, step: int, total_steps: int) -> float:
    decay_start = max(cfg.warmup_steps, total_steps - round(total_steps * cfg.decay_fraction))
    return _towards_floor(cfg, 1 - _progress(cfg, step, decay_start, total_steps))


def _progress(cfg: ScheduleConfig, step: int, start: int, total_steps: int) -> float:
    """Share of the way from `start` (0) to the last step (1)."""
    return min(max(step - start, 0) / max(total_steps - start, 1), 1.0)


def _towards_floor(cfg: ScheduleConfig, height: float) -> float:
    return cfg.min_lr_ratio + (1 - cfg.min_lr_ratio) * height


_SHAPES: dict[str, Callable[[ScheduleConfig, int, int], float]] = {
    "rsqrt": _rsqrt,
    "cosine": _cosine,
    "wsd": _wsd,
    "linear": _linear,
    "constant": _constant,
}
