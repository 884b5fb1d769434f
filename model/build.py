"""From a configuration and process groups to a model on a device: the one place where layout and model meet."""

from __future__ import annotations

import torch
from torch import nn

from conf.schema import RunConfig
from model.init import init_key, initialise
from model.t5.model import SwitchTransformer
from parallel.layers.experts import build_exchange
from parallel.layers.plain import LayerFactory, PlainLayers
from parallel.layers.sharding import cast_module
from parallel.mesh.axes import Mesh


def build_model(cfg: RunConfig, mesh: Mesh, *, device: torch.device | str, dtype: torch.dtype) -> SwitchTransformer:
    """This rank's part of the model, initialised from `cfg.seed`, in its final dtypes.

    Built on the meta device and cast there, so that memory holds each parameter once, in the dtype it trains in.
    """
    module = meta_model(cfg, mesh)
    cast_module(module, dtype)
    materialise(module, device)
    initialise(module, mesh, init_key(cfg))
    return module


def meta_model(cfg: RunConfig, mesh: Mesh) -> SwitchTransformer:
    """The model without memory: shapes, names and tags, in fp32 on the meta device."""
    with torch.device("meta"):
        return SwitchTransformer(
            cfg.model,
            cfg.moe,
            layers=_layer_factory(mesh),
            exchange=build_exchange(mesh),
            recompute=cfg.train.activation_checkpointing,
        )


def materialise(module: nn.Module, device: torch.device | str) -> None:
    """Give every meta parameter and buffer memory on `device`, in place, keeping tags and ties.

    `nn.Module.to_empty` makes new parameters and drops what was attached to the old ones, the tags included.
    """
    done: dict[int, nn.Parameter] = {}
    for child in module.modules():
        for name, old in child.named_parameters(recurse=False):
            if id(old) not in done:
                new = nn.Parameter(torch.empty_like(old, device=device), requires_grad=old.requires_grad)
                vars(new).update(vars(old))
                done[id(old)] = new
            child._parameters[name] = done[id(old)]
        assert not list(child.named_buffers(recurse=False)), f"{type(child).__name__}: checkpoints hold no buffers"


def _layer_factory(mesh: Mesh) -> LayerFactory:
    if mesh.tp.size == 1:
        return PlainLayers()
    from parallel.layers.tensor import (
        TensorParallelLayers,  # Megatron-Core takes seconds to import and is needed here only
    )

    return TensorParallelLayers(mesh)
