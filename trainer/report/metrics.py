"""Sums over a step's or an evaluation's micro-batches, reduced over ranks once, and the numbers people read from them.

Shape suffixes: B batch, T target length, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from data.tasks.task import TokenKind
from model.contract import ModelOutput
from model.losses import LossParts
from model.moe.types import RouterStats
from parallel.mesh import collectives
from parallel.mesh.axes import Mesh

SCALARS = ("ce", "aux", "z", "loss_sum", "tokens")  # before sum and count of each kind of target tokens
_STATS = tuple(field.name for field in fields(RouterStats))


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerReport:
    """How one expert layer routed, over all ranks."""

    name: str  # "encoder.1": stack and layer
    load: tuple[float, ...]  # share of real tokens' choices that fall on expert e, before capacity
    probability: tuple[float, ...]  # mean router probability of each expert
    dropped: float  # share of real tokens without any slot
    slots_per_token: float  # buffer rows computed per real token
    entropy: float  # mean entropy of the router's distribution, nats
    confidence: float  # mean largest probability
    aux: float  # mean over groups, unweighted; 1 when balanced
    z: float  # mean squared log-partition


# What is logged of each expert layer, as `<prefix>/<stack>.<layer>/<name>`; docs/metrics.md says what each means.
LAYER_METRICS: dict[str, Callable[[LayerReport], float]] = {
    "dropped": lambda layer: layer.dropped,
    "entropy": lambda layer: layer.entropy,
    "confidence": lambda layer: layer.confidence,
    "z": lambda layer: layer.z,
    "aux": lambda layer: layer.aux,
    "imbalance": lambda layer: max(layer.load) * len(layer.load),  # fullest expert over an even share; 1 is perfect
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Reduced numbers of a step or an evaluation. Losses in nats per token."""

    loss: float  # cross-entropy per real target token
    aux_loss: float  # weighted, as it enters the total
    z_loss: float  # weighted
    by_kind: dict[str, float]  # over the target tokens of each kind: text, and what the task tells apart
    tokens: float  # real target tokens
    layers: tuple[LayerReport, ...]

    @property
    def loss_text(self) -> float:
        """Over target tokens that are text."""
        return self.by_kind["text"]

    @property
    def dropped(self) -> float:
        """Mean dropped share over expert layers; 0 for a dense model."""
        return sum(layer.dropped for layer in self.layers) / max(len(self.layers), 1)


class Meter:
    """Accumulates device-side sums of micro-batches without a host sync; `reduce` is the one collective."""

    def __init__(self, *, kinds: Mapping[str, TokenKind], layer_names: tuple[str, ...]) -> None:
        """`kinds` of target tokens, as `data.tasks.task.target_kinds` gives them."""
        self._kinds = kinds
        self._layer_names = layer_names
        self._scalars: Tensor | None = None
        self._layers: list[Tensor] = []
        self._experts: list[int] = []

    def add(self, output: ModelOutput, targets_BT: Tensor, parts: LossParts | None) -> None:
        """Count one micro-batch; `parts` is None in evaluation. Routing counts only where the model took statistics."""
        loss_BT = output.token_loss_BT.detach().double()
        real_BT = targets_BT != 0
        zero = loss_BT.new_zeros(())
        terms = (parts.ce, parts.aux, parts.z) if parts else (zero, zero, zero)
        values = [term.detach().double() for term in terms]
        for counted_BT in (real_BT, *(kind.mask(targets_BT) for kind in self._kinds.values())):
            values += [(loss_BT * counted_BT).sum(), counted_BT.sum().double()]
        stacked = torch.stack(values)
        self._scalars = stacked if self._scalars is None else self._scalars + stacked
        self._add_layers(layer.stats for layer in output.layers if layer.stats is not None)

    def _add_layers(self, stats: Iterable[RouterStats]) -> None:
        flat = [_flatten(each) for each in stats]
        if not self._layers:
            self._layers = flat
            self._experts = [(vector.numel() - len(_STATS) + 3) // 3 for vector in flat]
        else:
            self._layers = [old + new for old, new in zip(self._layers, flat, strict=True)]

    def finite(self) -> Tensor:
        """Whether every sum so far is finite on this rank, a bool scalar on its device."""
        assert self._scalars is not None, "nothing was added"
        return torch.isfinite(self._scalars).all()

    def reduce(self, mesh: Mesh) -> Report:
        """Sum over data-parallel ranks (tensor ranks hold equal numbers) and turn into a report."""
        assert self._scalars is not None, "nothing was added"
        everything = torch.cat([self._scalars, *self._layers])
        collectives.all_reduce(everything, mesh.dp)
        values = everything.tolist()
        named = dict(zip(SCALARS, values, strict=False))
        offset = len(SCALARS)
        by_kind = {}
        for kind in self._kinds:
            by_kind[kind] = values[offset] / max(values[offset + 1], 1.0)
            offset += 2
        layers = []
        for name, vector, experts in zip(self._layer_names, self._layers, self._experts, strict=True):
            layers.append(_layer_report(name, values[offset : offset + vector.numel()], experts))
            offset += vector.numel()
        return Report(
            loss=named["loss_sum"] / max(named["tokens"], 1.0),
            aux_loss=named["aux"],
            z_loss=named["z"],
            by_kind=by_kind,
            tokens=named["tokens"],
            layers=tuple(layers),
        )


def _flatten(stats: RouterStats) -> Tensor:
    return torch.cat([getattr(stats, name).detach().double().reshape(-1) for name in _STATS])


def _layer_report(name: str, values: list[float], experts: int) -> LayerReport:
    sums: dict[str, list[float]] = {}
    offset = 0
    for field in _STATS:
        size = experts if field.endswith("_E") else 1
        sums[field] = values[offset : offset + size]
        offset += size
    tokens = max(sums["tokens"][0], 1.0)
    return LayerReport(
        name=name,
        load=tuple(count / max(sum(sums["load_E"]), 1.0) for count in sums["load_E"]),
        probability=tuple(mass / tokens for mass in sums["probability_E"]),
        dropped=1.0 - sums["routed"][0] / tokens if sums["tokens"][0] else 0.0,
        slots_per_token=sums["slots"][0] / tokens,
        entropy=sums["entropy"][0] / tokens,
        confidence=sums["confidence"][0] / tokens,
        aux=sums["aux"][0] / max(sums["groups"][0], 1.0),
        z=sums["z"][0] / tokens,
    )


def plural(kind: str) -> str:
    """A kind of target tokens as people read it."""
    return kind if kind == "text" else f"{kind}s"


def flat_metrics(prefix: str, report: Report) -> dict[str, float]:
    """Stable metric names of a report's losses: `<prefix>/loss`, `<prefix>/loss_text`, ..."""
    metrics = {
        f"{prefix}/loss": report.loss,
        **{f"{prefix}/loss_{kind}": loss for kind, loss in report.by_kind.items()},
        f"{prefix}/target_tokens": report.tokens,
    }
    if report.layers:
        metrics[f"{prefix}/dropped"] = report.dropped
    return metrics


def router_metrics(report: Report, *, prefix: str, per_expert: bool) -> dict[str, float | list[float]]:
    """`<prefix>/<stack>.<layer>/...`: scalars always, the load and probability of every expert on request.

    Training and evaluation differ in capacity and jitter, so they have prefixes of their own.
    """
    metrics: dict[str, float | list[float]] = {}
    for layer in report.layers:
        base = f"{prefix}/{layer.name}"
        metrics |= {f"{base}/{name}": measure(layer) for name, measure in LAYER_METRICS.items()}
        if per_expert:
            metrics[f"{base}/load"] = list(layer.load)
            metrics[f"{base}/probability"] = list(layer.probability)
    return metrics
