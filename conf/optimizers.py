"""The table of optimizers: what a configuration must know of each before any is built. One row per optimizer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerRow:
    """An optimizer by `optim.name`. Every field of `OptimConfig` that it does not use is ignored."""

    module: str  # holds KIND, the `parallel.optim.kinds.OptimizerKind` that builds it; imports torch
    zero: tuple[int, ...] = (0, 1, 2)  # legal ZeRO stages
    zero_reason: str = ""  # why not the others
    first_moment: bool = True  # whether it uses beta1


OPTIMIZERS: dict[str, OptimizerRow] = {
    "adamw": OptimizerRow(module="parallel.optim.adamw"),
    "adafactor": OptimizerRow(
        module="parallel.optim.adafactor",
        zero=(0,),
        zero_reason="ZeRO flattens parameters, and factored moments need their rows and columns",
        first_moment=False,
    ),
}
