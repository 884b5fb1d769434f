"""The layer factory at tp > 1: Megatron-Core's tensor-parallel layers behind the interface of `PlainLayers`.

Parameter names, initial values and results equal the plain factory's; only the shapes are cut. Importing this file
imports Megatron-Core, which takes seconds, so it is imported where tp > 1 and nowhere else.

Shape suffixes: B batch, L length, D d_model, V this rank's vocabulary columns (padded vocabulary / tp).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.model_parallel_config import ModelParallelConfig
from megatron.core.tensor_parallel.cross_entropy import vocab_parallel_cross_entropy
from megatron.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    set_tensor_model_parallel_attributes,
)
from torch import Tensor, nn
from typing_extensions import override

from parallel.layers.plain import LayerFactory
from parallel.layers.sharding import ParamSpec, tag
from parallel.mesh.axes import Axis, Mesh
from parallel.mesh.collectives import all_gather, all_reduce, copy_to, reduce_from


class TensorParallelLayers(LayerFactory):
    """Megatron-Core's layers. Weights come uninitialised, on the default device, in the default dtype."""

    def __init__(self, mesh: Mesh) -> None:
        assert mesh.tp.size > 1, "PlainLayers serves tp = 1"
        self._axis = mesh.tp
        self.tp_size = mesh.tp.size
        self.tp_rank = mesh.tp.rank

    @override
    def column_linear(self, d_in: int, d_out: int, spec: ParamSpec) -> nn.Module:
        layer = _ColumnLinear(
            d_in, d_out, config=self._config(), init_method=_unused, bias=False, gather_output=False,
            tp_group=self._axis.group,
        )  # fmt: skip
        return _mark(layer, spec, cut_dim=0)

    @override
    def row_linear(self, d_in: int, d_out: int, spec: ParamSpec) -> nn.Module:
        layer = _RowLinear(
            d_in, d_out, config=self._config(), init_method=_unused, bias=False, input_is_parallel=True,
            skip_bias_add=False, tp_group=self._axis.group,
        )  # fmt: skip
        return _mark(layer, spec, cut_dim=1)

    @override
    def embedding(self, rows: int, width: int, spec: ParamSpec) -> nn.Module:
        layer = VocabParallelEmbedding(
            rows, width, config=self._config(), init_method=_unused, tp_group=self._axis.group
        )
        return _mark(layer, spec, cut_dim=0)

    @override
    def tied_logits(self, x_BLD: Tensor, weight_VD: Tensor) -> Tensor:
        return F.linear(copy_to(x_BLD, self._axis), weight_VD)

    @override
    def cross_entropy(self, logits_BLV: Tensor, targets_BL: Tensor) -> Tensor:
        # Columns of -inf (padding of the vocabulary) take part in neither value nor gradient.
        if logits_BLV.dtype == torch.float64:
            return _cross_entropy_fp64(logits_BLV, targets_BL, self._axis)
        # Megatron-Core works in place; of bf16 it makes an fp32 copy itself, an fp32 tensor would be overwritten.
        own = logits_BLV.clone() if logits_BLV.dtype == torch.float32 else logits_BLV
        return vocab_parallel_cross_entropy(own, targets_BL)

    @override
    def gather_logits(self, logits_BLV: Tensor) -> Tensor:
        return all_gather(logits_BLV.detach(), self._axis).movedim(0, -2).flatten(-2)

    def _config(self) -> ModelParallelConfig:
        return ModelParallelConfig(
            tensor_model_parallel_size=self.tp_size,
            perform_initialization=False,  # model.init draws logical tensors and takes this rank's slice
            use_cpu_initialization=True,  # "allocate on the default device": meta, or the CPU
            params_dtype=torch.get_default_dtype(),
            gradient_accumulation_fusion=False,
        )


class _PlainCall:
    """Makes a Megatron-Core linear layer look like `nn.Linear`: it returns a tensor, and its state is its weight."""

    # Megatron-Core adds an empty `_extra_state` for Transformer Engine, under a name that plain layers do not have.
    get_extra_state = nn.Module.get_extra_state
    set_extra_state = nn.Module.set_extra_state

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._load_state_dict_pre_hooks.clear()  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, x: Tensor) -> Tensor:
        """[.., d_in] -> [.., d_out], of which one is this rank's part. At most three dims, as Megatron-Core takes."""
        assert x.dim() <= 3, tuple(x.shape)
        output, _ = super().forward(x)  # pyright: ignore[reportAttributeAccessIssue]
        return output


class _ColumnLinear(_PlainCall, ColumnParallelLinear):  # pyright: ignore[reportIncompatibleMethodOverride]
    pass


class _RowLinear(_PlainCall, RowParallelLinear):  # pyright: ignore[reportIncompatibleMethodOverride]
    pass


def _unused(_weight: Tensor) -> None:
    raise AssertionError("weights are initialised by model.init")


def _mark(layer: Any, spec: ParamSpec, cut_dim: int) -> nn.Module:
    """Tag the weight and say that it is cut: Megatron-Core says so only when it initialises the weight itself.

    Without the mark, norms that skip copies on other tensor ranks would skip this rank's shard.
    """
    set_tensor_model_parallel_attributes(layer.weight, is_parallel=True, dim=cut_dim, stride=1)
    tag(layer.weight, spec)
    return layer


def _cross_entropy_fp64(logits_BLV: Tensor, targets_BL: Tensor, axis: Axis) -> Tensor:
    """logsumexp - logit of the target, over all ranks' columns, for proofs in fp64: Megatron-Core's works in fp32."""
    columns = logits_BLV.shape[-1]
    top_BL = all_reduce(logits_BLV.detach().amax(-1), axis, "max")
    shifted_BLV = logits_BLV - top_BL.unsqueeze(-1)
    sums_BL = reduce_from(shifted_BLV.exp().sum(-1), axis)
    local_BL = targets_BL - columns * axis.rank
    here_BL = (local_BL >= 0) & (local_BL < columns)
    picked_BL = shifted_BLV.gather(-1, local_BL.clamp(0, columns - 1).unsqueeze(-1)).squeeze(-1)
    target_BL = reduce_from(torch.where(here_BL, picked_BL, 0), axis)
    return sums_BL.log() - target_BL
