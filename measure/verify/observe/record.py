"""Taps on the expert layers of a model: write down what each decided, or make it decide by another run's logits.

Shape suffixes: G groups of this call, S tokens per group, E experts, C capacity, K choices per token, B rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from conf.derived.layers import layer_names
from conf.schema import RunConfig
from measure.verify.observe.rows import Rows, rows_of_noise
from measure.verify.observe.trace import untraced
from model.moe.layer import MoeLayer
from model.moe.tap import RoutingTap
from model.moe.types import Routing
from model.t5.model import SwitchTransformer
from parallel.mesh.axes import Mesh


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What one call of one expert layer decided for some groups of the global batch."""

    layer: str  # "encoder.1"
    groups: Tensor  # int64 [G]: numbers of the groups in the global batch
    slots_GSK: Tensor
    tokens_GEC: Tensor
    logits_GSE: Tensor


GivenLogits = Callable[[str, Tensor], Tensor]  # layer, numbers of groups [G] -> logits [G, S, E] of another run


class Recorder:
    """Every decision of a model's expert layers, recomputed ones as well, in the order in which they were made."""

    def __init__(
        self,
        module: nn.Module,
        cfg: RunConfig,
        mesh: Mesh,
        given: GivenLogits | None,
        rows: Rows = rows_of_noise,
    ) -> None:
        """`given`: logits to decide by in place of the layers' own; None: their own."""
        assert isinstance(module, SwitchTransformer)
        self._sequences = cfg.moe.group_sequences
        self._tp_rank = mesh.tp.rank
        self._rows_B: Tensor | None = None
        self._given, self._rows = given, rows
        self.decisions: list[Decision] = []
        module.register_forward_pre_hook(self._begin, with_kwargs=True)
        for name, layer in expert_layers(module, cfg).items():
            layer.tap = _Tap(self, name, layer)

    def take(self) -> list[Decision]:
        """The decisions since the last call."""
        taken, self.decisions = self.decisions, []
        return taken

    def groups_of(self, layer: MoeLayer) -> Tensor:
        """Numbers of the groups that this rank routes in the present micro-batch."""
        assert self._rows_B is not None, "the model was not called with noise"
        firsts = self._rows_B[:: self._sequences] // self._sequences
        shards = layer.exchange.group_shards
        return firsts.chunk(shards)[self._tp_rank] if shards > 1 else firsts

    def given(self, layer: str, groups: Tensor) -> Tensor | None:
        """Logits to decide by, if the run is a replay."""
        return None if self._given is None else self._given(layer, groups)

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._rows_B = self._rows(kwargs["noise"])


class _Tap(RoutingTap):
    """`RoutingTap` of one layer."""

    def __init__(self, recorder: Recorder, name: str, layer: MoeLayer) -> None:
        self._recorder, self._name, self._layer = recorder, name, layer

    @override
    @untraced
    def logits(self, logits_GSE: Tensor) -> Tensor:
        # Logits of another shape are left alone: their decisions will be reported as different.
        given_GSE = self._recorder.given(self._name, self._recorder.groups_of(self._layer))
        if given_GSE is None or given_GSE.shape != logits_GSE.shape:
            return logits_GSE
        replaced = _Replace.apply(logits_GSE, given_GSE.to(logits_GSE))
        assert isinstance(replaced, Tensor)
        return replaced

    @override
    @untraced
    def decided(self, routing: Routing) -> None:
        self._recorder.decisions.append(
            Decision(
                layer=self._name,
                groups=self._recorder.groups_of(self._layer),
                slots_GSK=routing.slots_GSK.detach(),
                tokens_GEC=routing.tokens_GEC.detach(),
                logits_GSE=routing.logits_GSE.detach(),
            )
        )


class _Replace(torch.autograd.Function):
    """Other values with the gradient of the first argument; a sum with their difference would round them."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, others: Tensor) -> Tensor:
        return others.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def expert_layers(module: SwitchTransformer, cfg: RunConfig) -> dict[str, MoeLayer]:
    """The expert layers by name ("encoder.1"), in the order in which the model reports them."""
    found: dict[str, MoeLayer] = {}
    for name in layer_names(cfg):
        stack, _, index = name.partition(".")
        layer = module.get_submodule(f"{stack}.layers.{index}.ff")
        assert isinstance(layer, MoeLayer)
        found[name] = layer
    return found
