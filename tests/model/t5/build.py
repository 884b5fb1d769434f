"""Small models and batches for the tests of the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor

from conf.routing.settings import init_rules
from conf.schema import ModelConfig, MoeConfig
from model.init import InitKey, initialise
from model.t5.model import SwitchTransformer
from parallel.layers.experts import LocalExchange
from parallel.layers.plain import PlainLayers
from parallel.layers.sharding import cast_module
from parallel.mesh.axes import single_process
from tests import settings

Kind = Literal["switch", "dense"]
MODEL = replace(settings.MODEL, vocab_size=100, d_kv=6, num_heads=4)  # vocabulary: not a multiple of 128
MOE = replace(settings.MOE, z_loss_weight=0.1)


def model_config(*, tie_embeddings: bool = True, **changes: Any) -> ModelConfig:
    """`MODEL` with other values; an output matrix of its own is not scaled, as `resolve` would have it."""
    tied = {"tie_embeddings": tie_embeddings, "logit_scale": "width" if tie_embeddings else "one"}
    return replace(MODEL, **tied | changes)


def moe_config(kind: Kind, experts: MoeConfig = MOE) -> MoeConfig:
    """`experts`, or no layer with any."""
    return experts if kind == "switch" else replace(experts, sparse_every=0, decoder_sparse_every=0)


def run_config(*, moe: Kind = "dense", experts: MoeConfig = MOE, recompute: bool = True, **model: Any) -> Any:
    """The part of a run's configuration that building a model reads; `model` are fields of `ModelConfig`."""
    train = SimpleNamespace(activation_checkpointing=recompute)
    return SimpleNamespace(model=model_config(**model), moe=moe_config(moe, experts), seed=1, train=train)


@dataclass(frozen=True, kw_only=True)
class Batch:
    encoder_BL: Tensor
    targets_BT: Tensor

    def __getitem__(self, rows: Any) -> Batch:
        return Batch(encoder_BL=self.encoder_BL[rows], targets_BT=self.targets_BT[rows])


def make_model(
    *,
    dtype: torch.dtype = torch.float64,
    moe: Kind = "dense",
    experts: MoeConfig = MOE,
    recompute: bool = False,
    seed: int = 1,
    **changes: Any,
) -> SwitchTransformer:
    """A one-process model; `changes` are fields of `ModelConfig`."""
    cfg, experts = model_config(**changes), moe_config(moe, experts)
    module = SwitchTransformer(cfg, experts, layers=PlainLayers(), exchange=LocalExchange(), recompute=recompute)
    cast_module(module, dtype)
    initialise(module, single_process(), InitKey(seed=seed, scale=cfg.init_scale, rules=init_rules(experts)))
    return module


def make_batch(*, rows: int = 4, length: int = 9, targets: int = 7, vocab: int = 100, seed: int = 0) -> Batch:
    """Random ids with padding that differs a lot between rows: row r keeps a shrinking share of its tokens."""
    generator = torch.Generator().manual_seed(seed)
    encoder_BL = torch.randint(1, vocab, (rows, length), generator=generator)
    targets_BT = torch.randint(1, vocab, (rows, targets), generator=generator)
    for row in range(rows):
        encoder_BL[row, max(1, length - 2 * row) :] = 0
        targets_BT[row, max(1, targets - 3 * (row % 3)) :] = 0
    return Batch(encoder_BL=encoder_BL, targets_BT=targets_BT)
