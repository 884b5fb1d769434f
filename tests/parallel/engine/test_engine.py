"""Every ZeRO stage, precision and layout against one fp64 process that trains token by token."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import pytest
import torch

from parallel.engine.deepspeed import build_engine, prepare_process
from parallel.mesh.axes import single_process
from parallel.mesh.groups import init_groups
from tests.harness import run_ranks
from tests.parallel.engine.engine_toy import (
    OracleStep,
    Toy,
    batch,
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


def check(world: int, layout: dict[str, Any], *, clips=(0.0, TIGHT_CLIP), backend: str | None = "gloo") -> None:
    shards = world // layout.get("tp", 1)
    cases = [
        ({**layout, "zero": zero, "clip_norm": clip}, expected(layout.get("accumulation", 1), clip, shards))
        for zero in (0, 1, 2)
        for clip in clips
    ]
    found = run_ranks(train_and_compare, world, cases, deadline_s=120, backend=backend)
    assert all(norms == found[0] for norms in found), "ranks report different gradient norms"
    for (options, reference), norms in zip(cases, found[0], strict=True):
        assert norms == pytest.approx([step.norm for step in reference], rel=1e-5), options


def test_one_process_without_launcher():
    check(1, {"accumulation": 2}, backend=None)


@pytest.mark.parametrize(
    "layout",
    [{}, {"ep": 2, "accumulation": 2}, {"tp": 2, "etp": 1}],
    ids=["dp2", "ep2", "experts whole on tensor ranks"],
)
def test_two_ranks(layout):
    check(2, layout)


@pytest.mark.parametrize("layout", [{"tp": 2, "ep": 2}, {"tp": 2, "ep": 2, "etp": 1}], ids=["etp2", "etp1"])
def test_tensor_and_expert_parallel(layout):
    check(4, layout, clips=(TIGHT_CLIP,))


def building(rank: int, world: int) -> None:
    """What the caller sees of building an engine, and what it may not do."""
    toy = Toy(single_process(), torch.float32, logical_weights())
    names = [name for name, _ in toy.named_parameters()]
    with pytest.raises(AssertionError, match="refuses this stage"):
        build_engine(toy, run_config(zero=1, optimizer="adafactor"), single_process())
    with pytest.raises(AssertionError, match="cast_module"):
        build_engine(toy, run_config(zero=1, precision="bf16"), single_process())
    engine = build_engine(toy, run_config(zero=1, accumulation=2), single_process())
    assert engine.module is toy
    assert [name for name, _ in toy.named_parameters()] == names
    assert list(toy.children()) == [], "the marker by which DeepSpeed knows experts is gone"
    ids, targets = batch(0, 0)
    engine.backward(engine.module(ids, targets))
    with pytest.raises(AssertionError, match="1 of 2 micro-batches"):
        engine.step(LR)


def test_building():
    run_ranks(building, 1, backend=None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "layout"),
    [
        (2, {"tp": 2}),
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


def cpu_in_spite_of_a_variable(rank: int, world: int) -> str:
    os.environ["DS_ACCELERATOR"] = "cuda"
    prepare_process(on_gpu=False)
    return os.environ["DS_ACCELERATOR"]


def test_an_accelerator_that_was_chosen_for_others_is_not_this_run_s():
    assert run_ranks(cpu_in_spite_of_a_variable, 1) == ["cpu"]
