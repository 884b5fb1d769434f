"""The scalar numbers of one step that layouts are compared by: losses in all and per expert layer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from conf.derived.layers import layer_names
from conf.schema import RunConfig
from data.tasks.task import target_kinds
from data.text.vocabulary import appended
from model.contract import ModelOutput
from model.losses import LossParts
from parallel.mesh import collectives
from parallel.mesh.axes import Mesh
from trainer.report.metrics import Meter


@dataclass(frozen=True, kw_only=True, slots=True)
class StepNumbers:
    """Losses in nats. `aux` and `z` are weighted, as they enter the total; those of layers are not."""

    loss: float  # cross-entropy per real target token, as it is logged
    entered: float  # the same as it enters backward, with the divisor that the step counted
    aux: float
    z: float
    layer_aux: dict[str, float]  # mean over groups
    layer_z: dict[str, float]  # sum over tokens

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        return asdict(self)

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> StepNumbers:
        """The reverse of `to_json`."""
        return cls(**tree)


class Tally(Meter):
    """The trainer's meter, which also keeps every layer's losses in full precision."""

    def __init__(self, cfg: RunConfig) -> None:
        self._names = layer_names(cfg)
        vocabulary = appended(cfg.data.tokenizer_vocab, cfg.data.sentinels)
        super().__init__(kinds=target_kinds(cfg.data, vocabulary), layer_names=self._names)
        self._layer_sums: Tensor | None = None
        self._entered: Tensor | None = None

    @override
    def add(self, output: ModelOutput, targets_BT: Tensor, parts: LossParts | None) -> None:
        super().add(output, targets_BT, parts)
        if parts is not None:
            entered = parts.ce.detach().double().reshape(1)
            self._entered = entered if self._entered is None else self._entered + entered
        layers = output.layers
        if layers:
            rows = [torch.stack((each.aux_loss, each.z_sum)).detach().double() for each in layers]
            groups = torch.tensor([[float(each.groups)] for each in layers], dtype=torch.float64)
            new = torch.cat((torch.stack(rows), groups.to(rows[0].device)), 1)
            self._layer_sums = new if self._layer_sums is None else self._layer_sums + new

    def numbers(self, mesh: Mesh) -> StepNumbers:
        """What the trainer would log of the step, and the layers' sums. Collective over dp."""
        report = self.reduce(mesh)
        assert self._entered is not None, "nothing was added"
        entered = float(collectives.all_reduce(self._entered.clone(), mesh.dp))
        sums: list[list[float]] = []
        if self._layer_sums is not None:
            sums = collectives.all_reduce(self._layer_sums, mesh.dp).tolist()
        return StepNumbers(
            loss=report.loss,
            entered=entered,
            aux=report.aux_loss,
            z=report.z_loss,
            layer_aux={name: aux / count for name, (aux, _, count) in zip(self._names, sums, strict=True)},
            layer_z={name: z for name, (_, z, _) in zip(self._names, sums, strict=True)},
        )
