"""Relu's kink: units within rounding of 0 are on in one run and off in another, and whole gradients hang on them.

The reference writes down which units are on. When a layout's gradients differ and nothing before them does, it runs
again with the reference's choice for units that are within `TIE` of 0, and counts those that it had otherwise.

Shape suffixes: B rows of the micro-batch, L length, X experts of this rank, R buffer rows, G groups, E experts, C
capacity, F columns of d_ff on this rank; P ranks along ep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from conf.schema import RunConfig
from measure.verify.rows import Rows, rows_of_noise
from model.moe.experts import ExpertBank
from model.moe.layer import MoeLayer
from model.t5.feed_forward import ReluFeedForward
from model.t5.model import SwitchTransformer

TIE = 1e-5  # of the largest input of the same call

GivenUnits = Callable[[str], Tensor]  # place of a relu -> which units are on in the reference, whole


class UnitRecorder:
    """Which units of every relu are on, for the reference: one call of each per step with the whole batch."""

    def __init__(self, module: SwitchTransformer, cfg: RunConfig) -> None:
        self._groups = cfg.train.global_batch // (cfg.moe.group_sequences or 1)
        self._taken: dict[str, Tensor] = {}
        for name, relu, layer in _relus(module):
            relu.register_forward_hook(self._note(name, isinstance(layer, MoeLayer)))

    def take(self) -> dict[str, Tensor]:
        """bool, by place: [B, L, F], of experts [E, G, C, F]."""
        taken, self._taken = self._taken, {}
        return taken

    def _note(self, name: str, of_experts: bool) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            on = args[0].detach() > 0
            self._taken[name] = on.unflatten(1, (self._groups, -1)) if of_experts else on

        return hook


class UnitReplay:
    """Puts the reference's choice in the place of a layout's own where it lies within a tie, and counts those."""

    def __init__(
        self, module: SwitchTransformer, cfg: RunConfig, given: GivenUnits, rows: Rows = rows_of_noise
    ) -> None:
        self._rows = rows
        self._given, self._sequences = given, cfg.moe.group_sequences or 1
        self._rows_B: Tensor | None = None
        self.moved: set[tuple[str, int, int]] = set()  # place, first row of the micro-batch, unit
        module.register_forward_pre_hook(self._begin, with_kwargs=True)
        for name, relu, layer in _relus(module):
            select = self._expert(name, layer) if isinstance(layer, MoeLayer) else self._dense(name, layer)
            relu.register_forward_hook(self._replace(name, select))

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._rows_B = self._rows(kwargs["noise"])

    def _dense(self, name: str, layer: ReluFeedForward) -> Callable[[Tensor], Tensor]:
        def select(x_BLF: Tensor) -> Tensor:
            assert self._rows_B is not None
            columns = slice(layer.first_column, layer.first_column + x_BLF.shape[-1])
            return self._given(name)[self._rows_B.cpu()][..., columns]

        return select

    def _expert(self, name: str, layer: MoeLayer) -> Callable[[Tensor], Tensor]:
        def select(x_XRF: Tensor) -> Tensor:
            assert self._rows_B is not None
            bank: ExpertBank = layer.experts
            firsts = self._rows_B[:: self._sequences] // self._sequences
            # The rows come from all ranks of ep, in the order in which the exchange delivers them.
            groups = layer.exchange.gather_rows(layer.exchange.enter(firsts).contiguous())
            experts = slice(bank.first_expert, bank.first_expert + bank.num_local)
            columns = slice(bank.first_column, bank.first_column + x_XRF.shape[-1])
            return self._given(name)[experts][:, groups.cpu()][..., columns].flatten(1, 2)

        return select

    def _replace(self, name: str, select: Callable[[Tensor], Tensor]) -> Callable[..., Tensor | None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
            x = args[0]
            wanted = select(x).to(x.device)
            if wanted.shape != x.shape:
                return None  # other capacities: reported as other routing
            moved = (wanted != (x.detach() > 0)) & (x.detach().abs() <= TIE * x.detach().abs().max())
            if not moved.any():
                return None
            assert self._rows_B is not None
            first = int(self._rows_B[0])
            self.moved.update((name, first, unit) for unit in moved.flatten().nonzero().flatten().tolist())
            return torch.where(moved, x * wanted, output)

        return hook


def _relus(module: nn.Module) -> Iterator[tuple[str, nn.Module, ReluFeedForward | MoeLayer]]:
    """Every relu with the name and the layer that it belongs to."""
    for name, child in module.named_modules():
        if isinstance(child, ReluFeedForward):
            yield name, child.relu, child
        elif isinstance(child, MoeLayer) and child.experts.ffn == "relu":
            yield name, child.experts.relu, child
