"""The layers of a model in order: which stack they are in and whether they hold experts."""

from __future__ import annotations

from conf.routing.settings import sparse_place
from conf.schema import ModelConfig, MoeConfig, Stack

STACKS: tuple[Stack, ...] = ("encoder", "decoder")


def stack_depth(model: ModelConfig, stack: Stack) -> int:
    """Layers of a stack."""
    return model.num_encoder_layers if stack == "encoder" else model.num_decoder_layers


def is_sparse_layer(model: ModelConfig, moe: MoeConfig, stack: Stack, layer: int) -> bool:
    """Whether layer `layer` (from 0) of a stack is an expert bank (1, 3, 5 .. for every 2; none for every 0)."""
    every = moe.sparse_every if stack == "encoder" else moe.decoder_sparse_every
    return model.moe == "switch" and every > 0 and layer % every == sparse_place(moe, every)


def sparse_layers(model: ModelConfig, moe: MoeConfig, stack: Stack) -> tuple[int, ...]:
    """Indices of the expert layers of a stack."""
    return tuple(layer for layer in range(stack_depth(model, stack)) if is_sparse_layer(model, moe, stack, layer))
