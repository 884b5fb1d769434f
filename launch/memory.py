"""What a machine's memory cannot hold: told before anything starts where the sizes say so, else when it was refused."""

from __future__ import annotations

from conf.derived.estimate import local_params, num_params
from conf.errors import ConfigError, PointsmanError, SetupError
from conf.machine import available_memory, gpus_at_hand
from conf.schema import RunConfig

_LEAST_BYTES = 8  # a parameter takes: weight and gradient in fp32, or both in bf16 and a master in fp32
_REFUSALS = ("can't allocate memory", "not enough memory", "out of memory", "storage size calculation overflowed")


def check_memory(cfg: RunConfig) -> None:
    """Raise ConfigError where the ranks of a machine without GPUs cannot even hold weights and gradients."""
    needed, there = cfg.launch.nproc * local_params(cfg) * _LEAST_BYTES, available_memory()
    if needed <= there or (cfg.parallel.backend != "gloo" and gpus_at_hand()):
        return
    raise ConfigError(
        "model",
        got=f"{cfg.model.preset} with {num_params(cfg.model, cfg.moe):,} parameters",
        needs=f"at least {needed / 2**30:,.1f} GiB for weights and gradients of {cfg.launch.nproc} ranks; this machine "
        f"has {there / 2**30:,.1f} GiB left",
        hint="a smaller model, fewer ranks, or parallel.tp and parallel.ep, which share it out",
    )


def out_of_memory(error: BaseException) -> SetupError | None:
    """The error to show for one by which an allocator of Python, NumPy or torch refused memory; None for any other."""
    if isinstance(error, PointsmanError):
        return None
    text = str(error).rpartition("DefaultCPUAllocator: ")[2]  # behind the place in torch's own sources
    refused = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if not refused and not (isinstance(error, RuntimeError) and any(each in text.lower() for each in _REFUSALS)):
        return None
    return SetupError(
        f"memory: {text.splitlines()[0] if text else 'none left'}; needs sizes that fit this machine; try a smaller "
        "model, batch (train.accumulation divides it) or length, or fewer ranks"
    )
