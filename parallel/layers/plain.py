"""The layer factory: how a model asks for layers that may be cut over tensor ranks, and the one-process answer.

Shape suffixes: B batch, L length, D d_model, V padded vocabulary; "/tp" marks a dim cut over tensor ranks.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from parallel.layers.sharding import ParamSpec, tag


class LayerFactory(Protocol):
    """Builds and applies the layers that tensor parallelism cuts. At tp = 1: torch's own (`PlainLayers`)."""

    tp_size: int
    tp_rank: int

    def column_linear(self, d_in: int, d_out: int, spec: ParamSpec) -> nn.Module:
        """Linear without bias, weight [d_out/tp, d_in]: [.., d_in] -> [.., d_out/tp]; backward all-reduces over tp."""
        ...

    def row_linear(self, d_in: int, d_out: int, spec: ParamSpec) -> nn.Module:
        """Linear without bias, weight [d_out, d_in/tp]: [.., d_in/tp] -> [.., d_out], all-reduced over tp."""
        ...

    def embedding(self, rows: int, width: int, spec: ParamSpec) -> nn.Module:
        """Token embedding, weight [rows/tp, width]: ids -> [.., width] on every tensor rank."""
        ...

    def tied_logits(self, x_BLD: Tensor, weight_VD: Tensor) -> Tensor:
        """x @ weight.T, an embedding's (sharded) weight: [B, L, V/tp]; backward all-reduces x's gradient over tp."""
        ...

    def cross_entropy(self, logits_BLV: Tensor, targets_BL: Tensor) -> Tensor:
        """Per-token cross-entropy in fp32 from (sharded) logits: [B, L]."""
        ...

    def gather_logits(self, logits_BLV: Tensor) -> Tensor:
        """All vocabulary columns on every tensor rank (generation only; no gradient)."""
        ...


class PlainLayers(LayerFactory):
    """One process: `nn.Linear`, `F.embedding`, `F.cross_entropy`."""

    tp_size = 1
    tp_rank = 0

    @override
    def column_linear(self, d_in: int, d_out: int, spec: ParamSpec) -> nn.Module:
        return self._linear(d_in, d_out, spec)

    @override
    def row_linear(self, d_in: int, d_out: int, spec: ParamSpec) -> nn.Module:
        return self._linear(d_in, d_out, spec)

    @override
    def embedding(self, rows: int, width: int, spec: ParamSpec) -> nn.Module:
        # The weight is handed over empty: torch's own initialisation would cost time and be thrown away.
        layer = nn.Embedding(rows, width, _weight=torch.empty(rows, width))
        tag(layer.weight, spec)  # pyright: ignore[reportArgumentType]  # torch's stubs say Tensor
        return layer

    @override
    def tied_logits(self, x_BLD: Tensor, weight_VD: Tensor) -> Tensor:
        return F.linear(x_BLD, weight_VD)

    @override
    def cross_entropy(self, logits_BLV: Tensor, targets_BL: Tensor) -> Tensor:
        wide = logits_BLV.dtype if logits_BLV.dtype == torch.float64 else torch.float32
        flat = F.cross_entropy(logits_BLV.to(wide).flatten(0, -2), targets_BL.flatten(), reduction="none")
        return flat.view_as(targets_BL)

    @override
    def gather_logits(self, logits_BLV: Tensor) -> Tensor:
        return logits_BLV

    def _linear(self, d_in: int, d_out: int, spec: ParamSpec) -> nn.Module:
        layer = nn.utils.skip_init(nn.Linear, d_in, d_out, bias=False, device=torch.get_default_device())
        tag(layer.weight, spec)  # pyright: ignore[reportArgumentType]
        return layer
