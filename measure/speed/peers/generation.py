"""`bench generation`: tokens written by ours and by Hugging Face's Switch, and what more experts cost.

Prompts are random tokens of the configured encoder length; every row writes exactly `TOKENS` tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch

from conf.compose import compose
from conf.schema import RunConfig
from measure.speed.peers.library import PACKAGE, library_model
from measure.speed.peers.own import batch_of
from measure.speed.peers.run import ONE_RANK, SHAPE
from measure.speed.peers.side import absence
from measure.speed.result import Row
from measure.speed.setup import Settings
from measure.speed.timing import Comparison, clock_of, interleave
from model.build import build_model
from model.generate import GenerateMode, GenerateOptions, generate
from model.init import init_key, initialise
from parallel.engine.protocol import compute_dtype
from parallel.mesh.axes import Mesh, single_process

EXPERTS = (8, 64, 128)
BATCHES = (1, 16)
TOKENS = 32
MODES: tuple[GenerateMode, ...] = ("greedy", "beam")


def shaped(settings: Settings) -> Settings:
    """The shape of `model=small_bench` unless another is named, on one rank."""
    shape = () if any(line.startswith("model=") for line in settings.overrides) else SHAPE
    overrides = (*shape, *settings.overrides, *ONE_RANK)
    return replace(settings, cfg=compose(overrides, world=(1, 1)), overrides=overrides)


def run(settings: Settings, mesh: Mesh) -> Iterator[Row]:
    """For every way and batch: each number of experts against Hugging Face, and the larger against the smallest."""
    assert mesh.world.size == 1
    cfgs = [compose((*settings.overrides, f"moe.num_experts={n}"), world=(1, 1)) for n in EXPERTS]
    prompts_BL = torch.cat([torch.from_numpy(micro.inputs_BL) for micro in batch_of(cfgs[0]).micro])
    prompts_BL = prompts_BL.repeat(-(-max(BATCHES) // len(prompts_BL)), 1).to(settings.device)
    writers = {f"{cfg.moe.num_experts} experts": _ours(cfg, settings.device) for cfg in cfgs}
    theirs = {}
    if absence(PACKAGE) is None:
        theirs = {f"Hugging Face, {cfg.moe.num_experts} experts": _theirs(cfg, settings.device) for cfg in cfgs}
    smallest = next(iter(writers))
    for mode in MODES:
        for batch in BATCHES:
            works = {name: partial(write, mode, prompts_BL[:batch]) for name, write in {**writers, **theirs}.items()}
            seconds = interleave(works, clock=clock_of(settings.device), rounds=settings.rounds, repeats=1)
            for name in writers:
                for peer in (f"Hugging Face, {name}", smallest):
                    if peer in seconds and peer != name:
                        yield _row(mode, batch, name, peer, Comparison(ours=seconds[name], peer=seconds[peer]))


def _row(mode: str, batch: int, name: str, peer: str, comparison: Comparison) -> Row:
    rates = {
        "tokens/s": batch * TOKENS / comparison.ours_seconds,
        "peer's tokens/s": batch * TOKENS / comparison.peer_seconds,
        "peer / ours": 1 / comparison.ratio,
    }
    case = f"{mode}, batch {batch}, {name}"
    return Row(benchmark="generation", case=case, peer=peer, comparison=comparison, numbers=rates)


def _ours(cfg: RunConfig, device: torch.device) -> Callable[[GenerateMode, torch.Tensor], object]:
    module = build_model(cfg, single_process(), device=device, dtype=compute_dtype(cfg.train.precision))
    initialise(module, single_process(), init_key(cfg))

    def write(mode: GenerateMode, prompts_BL: torch.Tensor) -> object:
        options = GenerateOptions(mode=mode, max_length=TOKENS, min_length=TOKENS - 1, beams=4)
        return generate(module, prompts_BL, options=options)

    return write


def _theirs(cfg: RunConfig, device: torch.device) -> Callable[[GenerateMode, torch.Tensor], object]:
    model = library_model(cfg).to(device, compute_dtype(cfg.train.precision)).eval()

    def write(mode: GenerateMode, prompts_BL: torch.Tensor) -> object:
        beams = 4 if mode == "beam" else 1
        with torch.no_grad():
            return model.generate(
                prompts_BL, max_new_tokens=TOKENS, min_new_tokens=TOKENS, num_beams=beams, do_sample=False
            )

    return write
