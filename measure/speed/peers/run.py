"""`bench peers`: a step of ours, its dense twin, the floor and Hugging Face's models, all in one process in turns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from conf.compose import compose
from conf.derived.layers import NO_EXPERTS, is_dense
from conf.reading.setting_files import merged
from conf.routing.routers import ROUTERS
from conf.schema import RunConfig
from measure.speed.peers.library import library_sides
from measure.speed.peers.own import eager, floor_side, own_side
from measure.speed.peers.side import Side
from measure.speed.result import Row
from measure.speed.setup import Settings
from measure.speed.timing import Comparison, clock_of, interleave
from parallel.mesh.axes import Mesh

EXPERTS = (8, 32, 128)
PRECISIONS = ("fp32", "bf16")
SHAPE = ("model=small_bench", "moe.group_sequences=8")
ONE_RANK = ("launch.nproc=1", "parallel.tp=1", "parallel.ep=1")


def cases(settings: Settings) -> Iterator[Settings]:
    """`model=small_bench` unless another shape is named, at each precision and number of experts that is not set."""
    keys = {line.partition("=")[0] for line in settings.overrides}
    shape = () if "model" in keys else SHAPE
    precisions = [()] if "train.precision" in keys else [(f"train.precision={name}",) for name in PRECISIONS]
    experts = [()] if "moe.num_experts" in keys else [(f"moe.num_experts={number}",) for number in EXPERTS]
    for precision in precisions:
        for number in experts:
            overrides = (*shape, *settings.overrides, *precision, *number, *ONE_RANK)
            yield replace(settings, cfg=compose(overrides, world=(1, 1)), overrides=overrides)


def run(settings: Settings, mesh: Mesh) -> Iterator[Row]:
    """One case: ours, as configured and without dropping, against everything; our dense twin against the T5."""
    assert mesh.world.size == 1, "one rank: the others' programs have no layout"
    cfg, device = settings.cfg, settings.device
    twin_cfg = compose(merged(settings.overrides, NO_EXPERTS), world=(1, 1))
    twin, library = _own(twin_cfg, device, "our dense twin"), list(library_sides(cfg, device))
    pairs: list[tuple[Side, Side]] = []
    for variant, name in _variants(settings):
        others = [floor_side(variant, device, of=name), *twin, *library]
        pairs += [(own, peer) for own in _own(variant, device, name) for peer in others]
    pairs += [(own, peer) for own in twin for peer in library_sides(twin_cfg, device)]
    shape = f"{cfg.moe.num_experts} experts, {cfg.train.precision}"
    for part in ("passes", "step"):
        works = {side.name: work for pair in pairs for side in pair if (work := getattr(side, part)) is not None}
        seconds = interleave(works, clock=clock_of(device), rounds=settings.rounds)
        words = {"passes": "forward and backward", "step": "whole step"}[part]
        for own, peer in pairs:
            if peer.name in seconds:
                comparison = Comparison(ours=seconds[own.name], peer=seconds[peer.name])
                yield Row(
                    benchmark="peers",
                    case=f"{words}, {shape}: {own.name}",
                    peer=peer.name,
                    comparison=comparison,
                    numbers={"peer / ours": 1 / comparison.ratio},
                )


def _variants(settings: Settings) -> Iterator[tuple[RunConfig, str]]:
    """The configuration, and where it drops tokens also without: the work of a library that drops hardly any."""
    yield settings.cfg, "ours"
    moe = settings.cfg.moe
    if moe.capacity == "bounded" and not is_dense(settings.cfg) and not ROUTERS[moe.router].experts_choose:
        yield compose(merged(settings.overrides, ("moe.capacity=dropless",)), world=(1, 1)), "ours, dropless"


def _own(cfg: RunConfig, device: torch.device, name: str) -> list[Side]:
    """As configured; where that is compiled, also without."""
    if cfg.train.compile == "off":
        return [own_side(cfg, device, name=name)]
    compiled = own_side(cfg, device, name=f"{name}, compiled")
    return [eager(compiled, name=name), compiled]
