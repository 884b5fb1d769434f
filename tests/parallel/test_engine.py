"""Every ZeRO stage, precision and layout against one fp64 process that trains token by token."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from parallel.engine_deepspeed import build_engine
from parallel.groups import init_groups
from parallel.types import single_process
from tests.harness import run_ranks
from tests.parallel.engine_toy import (
    OracleStep,
    Toy,
    logical_weights,
    oracle,
    run_config,
    run_micro_batches,
    take_shard,
)

LR = 0.05
STEPS = 3
TIGHT_CLIP = 0.1  # below every norm of the toy: always active


@cache
def expected(accumulation: int, clip_norm: float, shards: int) -> list[OracleStep]:
    return oracle(run_config(zero=0, accumulation=accumulation, clip_norm=clip_norm), STEPS, LR, shards=shards)


def train_and_compare(rank: int, world: int, cases: list[tuple[dict[str, Any], list[OracleStep]]]) -> list[list[float]]:
    """Norms of every case; fp32 gradients and weights are compared here, shard by shard."""
    norms = []
    for options, reference in cases:
        cfg = run_config(**options)
        mesh = init_groups(cfg.parallel) if world > 1 else single_process()
        toy = Toy(mesh, torch.float32, logical_weights())
        engine = build_engine(toy, cfg, mesh)
        norms.append([])
        for step in range(STEPS):
            run_micro_batches(engine, mesh, cfg, step)
            assert engine.gradients_finite()
            for name, grad in engine.gradients().items():
                whole = reference[step].grads[name]
                error = (grad - take_shard(name, whole, mesh)).abs().max() / whole.abs().max()
                assert error < 5e-5, f"{options} step {step}: gradient of {name} off by {error:.1e} of its maximum"
            norms[-1].append(engine.step(LR).grad_norm)
        assert engine.steps_taken == STEPS
        for name, weight in toy.named_parameters():
            error = (weight - take_shard(name, reference[-1].weights[name], mesh)).abs().max()
            assert error < 0.02 * LR, f"{options}: {name} off by {error / LR:.1e} learning rates"
    return norms


def check(world: int, layout: dict[str, Any], zeros: tuple[int, ...] = (0, 1, 2), clips=(0.0, TIGHT_CLIP)) -> None:
    shards = world // layout.get("tp", 1)
    cases = [
        ({**layout, "zero": zero, "clip_norm": clip}, expected(layout.get("accumulation", 1), clip, shards))
        for zero in zeros
        for clip in clips
    ]
    found = run_ranks(train_and_compare, world, cases, deadline_s=120)
    assert all(norms == found[0] for norms in found), "ranks report different gradient norms"
    for (options, reference), norms in zip(cases, found[0], strict=True):
        assert norms == pytest.approx([step.norm for step in reference], rel=1e-5), options


def test_one_process_without_launcher():
    check(1, {"accumulation": 2})


@pytest.mark.parametrize("layout", [{}, {"ep": 2, "accumulation": 2}], ids=["dp2", "ep2"])
def test_two_ranks(layout):
    check(2, layout)


@pytest.mark.parametrize("layout", [{"tp": 2, "ep": 2}, {"tp": 2, "ep": 2, "etp": 1}], ids=["etp2", "etp1"])
def test_tensor_and_expert_parallel(layout):
    check(4, layout, clips=(TIGHT_CLIP,))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "layout"),
    [
        (2, {"tp": 2}),
        (2, {"tp": 2, "etp": 1}),
        (2, {"ep": 2, "accumulation": 4}),
        (4, {"tp": 2, "ep": 4, "etp": 1}),
        (4, {"ep": 2}),
        (4, {"ep": 4}),
        (4, {"tp": 2, "ep": 2, "accumulation": 3}),
        (4, {}),
    ],
)
def test_every_other_layout(world, layout):
    check(world, layout)
