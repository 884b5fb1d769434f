"""The plan of a model: its layers in order, and what each consists of.

Whatever builds, counts, names, checks or measures layers reads this list, so that a model of another shape is another
list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from conf.routing.settings import sparse_place, stack_router
from conf.schema import Ffn, ModelConfig, MoeConfig, RunConfig, Stack

Attention = Literal["self", "cross"]
# What `moe=dense` is, as overrides: for a twin that keeps the semantics, which is chosen by the same group.
NO_EXPERTS = ("moe.sparse_every=0", "moe.decoder_sparse_every=0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """Residual sublayers: attention of each kind in turn, then a feed-forward layer or a bank of experts."""

    stack: Stack
    index: int  # in its stack, from 0
    attention: tuple[Attention, ...]
    feed_forward: Ffn  # of the dense layer, or of every expert
    experts: int  # 0: a dense layer
    router: str | None  # None: a dense layer

    @property
    def name(self) -> str:
        """What keys its noise and names its measurements: "encoder.3"."""
        return f"{self.stack}.{self.index}"


def stacks(model: ModelConfig, moe: MoeConfig) -> dict[Stack, tuple[Layer, ...]]:
    """The layers of each stack, in the order in which the stacks run."""
    return {
        "encoder": _stack(model, moe, "encoder", model.num_encoder_layers, moe.sparse_every, ("self",)),
        "decoder": _stack(model, moe, "decoder", model.num_decoder_layers, moe.decoder_sparse_every, ("self", "cross")),
    }


def layers(model: ModelConfig, moe: MoeConfig) -> tuple[Layer, ...]:
    """All layers, stack after stack."""
    return tuple(layer for stack in stacks(model, moe).values() for layer in stack)


def expert_layers(model: ModelConfig, moe: MoeConfig) -> tuple[Layer, ...]:
    """The layers that hold experts, in the order in which the model reports their routing."""
    return tuple(layer for layer in layers(model, moe) if layer.experts)


def layer_names(cfg: RunConfig) -> tuple[str, ...]:
    """Names of the expert layers, in that order."""
    return tuple(layer.name for layer in expert_layers(cfg.model, cfg.moe))


def is_dense(cfg: RunConfig) -> bool:
    """Whether a run is to have no experts at all."""
    return cfg.moe.sparse_every == cfg.moe.decoder_sparse_every == 0


def _stack(
    model: ModelConfig, moe: MoeConfig, stack: Stack, depth: int, every: int, attention: tuple[Attention, ...]
) -> tuple[Layer, ...]:
    """Layers 1, 3, 5 .. hold experts for `every` 2, none for 0; which of every 3 or more: by the semantics."""
    plan = []
    for index in range(depth):
        sparse = every > 0 and index % every == sparse_place(moe, every)
        plan.append(
            Layer(
                stack=stack,
                index=index,
                attention=attention,
                feed_forward=model.ffn,
                experts=moe.num_experts if sparse else 0,
                router=stack_router(moe, stack) if sparse else None,
            )
        )
    return tuple(plan)
