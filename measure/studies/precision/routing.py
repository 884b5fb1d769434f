"""What a precision changes in the routing of given weights: the same checkpoint, the same held-out tokens.

Runs trained in different precisions end with different weights and name their experts differently, so their choices
cannot be compared; those of one set of weights, evaluated in each precision, can.

Shape suffixes: N real tokens of all batches in reading order, G groups, S tokens per group, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from conf.derived.layers import layer_names
from data.corpus import open_corpus
from data.loader import build_loader
from data.tasks.task import target_kinds
from model.moe.layer import MoeLayer
from model.moe.types import RouteMode, Routing
from trainer.evaluate import evaluate
from trainer.loading import LoadedRun, load_run
from trainer.report.metrics import Meter, Report
from trainer.step import TensorBatch, to_device


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerChoices:
    """What one expert layer decided for every real token of the held-out batches."""

    choice_N: Tensor  # expert, without any capacity
    gate_N: Tensor  # its gate, fp32
    gap_N: Tensor  # best logit minus second best, as the router computed them
    kept_N: Tensor  # bool: has a slot at the capacity of training


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """One set of weights in one precision."""

    layers: dict[str, LayerChoices]
    report: Report  # losses and router metrics of an ordinary evaluation


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """How one layer's decisions differ between two precisions; shares are of all real tokens."""

    flipped: float  # go to another expert
    kept_changed: float  # have a slot in one and none in the other
    gate_error: float  # mean |difference| of the gate over tokens that go to the same expert
    gap_flipped: float | None  # median top-two gap, in the first precision, of tokens that flip; None: none flips
    gap_all: float  # the same of all tokens
    tokens: int


def compare(first: LayerChoices, second: LayerChoices) -> Change:
    """Differences of the same tokens' decisions."""
    assert first.choice_N.shape == second.choice_N.shape, "the same tokens"
    flipped_N = first.choice_N != second.choice_N
    same_N = ~flipped_N
    error_N = (first.gate_N - second.gate_N).abs()[same_N]
    return Change(
        flipped=flipped_N.double().mean().item(),
        kept_changed=(first.kept_N != second.kept_N).double().mean().item(),
        gate_error=error_N.double().mean().item() if len(error_N) else 0.0,
        gap_flipped=first.gap_N[flipped_N].median().item() if bool(flipped_N.any()) else None,
        gap_all=first.gap_N.median().item(),
        tokens=len(first.choice_N),
    )


def observe_all(run: Path, precisions: Mapping[str, tuple[str, ...]]) -> dict[str, Observation]:
    """The newest weights of `run`, evaluated under each set of overrides."""
    return {name: observe(run, overrides) for name, overrides in precisions.items()}


@torch.no_grad()
def observe(run: Path, overrides: tuple[str, ...]) -> Observation:
    """Losses of an ordinary evaluation, and every token's choice, gate and slot.

    Choices are taken where capacity never binds (each sequence a group with a slot for every token), slots at the
    capacity of training, without jitter in both.
    """
    loaded = load_run(run, overrides=overrides)
    corpus = open_corpus(loaded.cfg)

    def batches() -> Iterator[TensorBatch]:
        for batch in build_loader(corpus, loaded.cfg, split="validation", dp_rank=0, dp_size=1):
            yield from (to_device(micro, loaded.device) for micro in batch.micro)

    names = layer_names(loaded.cfg)
    free, tight = (_watch(loaded, batches(), mode=mode) for mode in ("no_drop", "train"))
    layers = {
        name: LayerChoices(
            choice_N=torch.cat(seen.choices),
            gate_N=torch.cat(seen.gates),
            gap_N=torch.cat(seen.gaps),
            kept_N=torch.cat(bound.kept),
        )
        for name, seen, bound in zip(names, free, tight, strict=True)
    }
    meter = Meter(kinds=target_kinds(loaded.cfg.data, corpus.tokenizer.vocabulary), layer_names=names)
    ordinary = build_loader(corpus, loaded.cfg, split="validation", dp_rank=0, dp_size=1)
    report = evaluate(loaded.module, ordinary, meter, mesh=loaded.mesh, device=loaded.device)
    return Observation(layers=layers, report=report)


class Watch:
    """A `RoutingTap` that keeps what its layer decides for real tokens and changes nothing."""

    def __init__(self) -> None:
        self.real_N = torch.empty(0, dtype=torch.bool)  # of the batch at hand, padding included; set by the caller
        self.choices: list[Tensor] = []
        self.gates: list[Tensor] = []
        self.gaps: list[Tensor] = []
        self.kept: list[Tensor] = []

    def logits(self, logits_GSE: Tensor) -> Tensor:
        """As they are."""
        return logits_GSE

    def decided(self, routing: Routing) -> None:
        """Keep the first choice of every real token; without a slot the expert is one past the last."""
        slots_N = routing.slots_GSK[..., 0].reshape(-1)[self.real_N]
        top2_N2 = routing.logits_GSE.float().topk(2, dim=-1).values.reshape(-1, 2)[self.real_N]
        self.choices.append(slots_N // routing.capacity)
        self.gates.append(routing.gates_GSK[..., 0].float().reshape(-1)[self.real_N])
        self.gaps.append(top2_N2[:, 0] - top2_N2[:, 1])
        self.kept.append(slots_N < routing.logits_GSE.shape[-1] * routing.capacity)


def _watch(loaded: LoadedRun, batches: Iterator[TensorBatch], *, mode: RouteMode) -> list[Watch]:
    """One forward pass over the batches; what every expert layer decided, in the order of `layer_names`."""
    named = [(name, layer) for name, layer in loaded.module.named_modules() if isinstance(layer, MoeLayer)]
    watches = [Watch() for _ in named]
    for (_, layer), watch in zip(named, watches, strict=True):
        layer.tap = watch
    try:
        for batch in batches:
            for (name, _), watch in zip(named, watches, strict=True):
                tokens = batch.inputs_BL if name.startswith("encoder") else batch.targets_BT
                watch.real_N = (tokens != 0).reshape(-1)
            loaded.module(batch.inputs_BL, batch.targets_BT, mode=mode, noise=None)
        return watches
    finally:
        for _, layer in named:
            layer.tap = None
