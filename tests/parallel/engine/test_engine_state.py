"""Masters and moments leave the engine whole, once each, and a new engine that takes them in continues bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from conf.errors import CheckpointError, NonFiniteError
from parallel.engine.deepspeed import build_engine
from parallel.engine.protocol import MASTER, STEP, compute_dtype
from parallel.layers.sharding import shard_of
from parallel.mesh.axes import Mesh
from parallel.mesh.groups import init_groups
from parallel.optim.adafactor import COLUMN, FULL, ROW, moment_dims
from tests.harness import run_ranks
from tests.parallel.engine.engine_toy import SHAPES, Toy, batch, logical_weights, run_config, run_micro_batches

LR = 0.05
ADAM = {MASTER, "exp_avg", "exp_avg_sq"}
ADAFACTOR = {MASTER, ROW, COLUMN, FULL}


def start(options: dict[str, Any], seed: int = 0):
    cfg = run_config(**options)
    mesh = init_groups(cfg.parallel)
    toy = Toy(mesh, compute_dtype(cfg.train.precision), logical_weights(seed))
    return cfg, mesh, toy, build_engine(toy, cfg, mesh)


def train(engine, mesh: Mesh, cfg, steps: range) -> list[float]:
    norms = []
    for step in steps:
        run_micro_batches(engine, mesh, cfg, step)
        norms.append(engine.step(LR).grad_norm)
    return norms


def weights_of(toy: Toy) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in toy.named_parameters()}


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], what: str) -> None:
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype, f"{what}: {name}"
        assert torch.equal(found[name], value), f"{what}: {name} differs"


def kept(name: str, dims: tuple[int, ...] | None) -> tuple[int, ...]:
    return tuple(range(len(SHAPES[name]))) if dims is None else dims


def slices_of(toy: Toy, mesh: Mesh, name: str, dims: tuple[int, ...] | None) -> tuple[slice, ...]:
    """Where a local value with these dims of a parameter lies in the logical value."""
    slices = shard_of(dict(toy.named_parameters())[name], mesh).slices
    return tuple(slices[dim] for dim in kept(name, dims))


def gather_state(engine, toy: Toy, mesh: Mesh) -> tuple[dict[tuple[str, str], torch.Tensor], list[int]]:
    """Logical tensors put together from what every rank owns, each element written once; and bytes owned per rank."""
    mine = [
        (s.name, s.kind, slices_of(toy, mesh, s.name, s.dims), s.dims, s.value.clone()) for s in engine.read_state()
    ]
    everyone: list[Any] = [None] * mesh.world.size
    dist.all_gather_object(everyone, mine)
    logical: dict[tuple[str, str], torch.Tensor] = {}
    for name, kind, slices, dims, value in (entry for rank in everyone for entry in rank):
        shape = [SHAPES[name][dim] for dim in kept(name, dims)]
        whole = logical.setdefault((name, kind), torch.full(shape, float("nan")))
        assert whole[slices].isnan().all(), f"{name} {kind}: a shard has two owners"
        assert value.dtype == torch.float32
        whole[slices] = value
    for key, whole in logical.items():
        assert not whole.isnan().any(), f"{key}: a shard has no owner"
    return logical, [sum(entry[-1].nbytes for entry in rank) for rank in everyone]


def reader(logical: dict[tuple[str, str], torch.Tensor], toy: Toy, mesh: Mesh, steps: int):
    def read(name: str, kind: str) -> torch.Tensor | None:
        if kind == STEP:
            assert name == STEP
            return torch.tensor(steps)
        dims = moment_dims(kind, dict(toy.named_parameters())[name])
        return logical[name, kind][slices_of(toy, mesh, name, dims)]

    return read


def resume(rank: int, world: int, cases: list[dict[str, Any]], kinds: set[str] = ADAM) -> list[list[int]]:
    """Train 2, read, train 2 more; a stranger that loads and trains the same 2 must not differ in a single bit."""
    owned = []
    for options in cases:
        cfg, mesh, toy, engine = start(options)
        fresh, _ = gather_state(engine, toy, mesh)
        assert {kind for _, kind in fresh} == {MASTER}, "moments exist before the first step"
        train(engine, mesh, cfg, range(2))
        logical, loads = gather_state(engine, toy, mesh)
        owned.append(loads)
        assert {kind for _, kind in logical} == kinds
        at_save, norms = weights_of(toy), train(engine, mesh, cfg, range(2, 4))
        at_end, end_state = weights_of(toy), gather_state(engine, toy, mesh)[0]

        _, _, other, stranger = start(options, seed=7)
        stranger.load_state(reader(logical, other, mesh, 2))
        assert stranger.steps_taken == 2
        assert_same(weights_of(other), at_save, f"{options}: after loading")
        assert train(stranger, mesh, cfg, range(2, 4)) == norms, f"{options}: norms after loading"
        assert_same(weights_of(other), at_end, f"{options}: two steps after loading")
        for key, value in gather_state(stranger, other, mesh)[0].items():
            assert torch.equal(value, end_state[key]), f"{options}: {key} two steps after loading"

        engine.load_state(reader(logical, toy, mesh, 2), weights_only=True)  # also: into an engine that has trained
        assert engine.steps_taken == 0
        assert_same(weights_of(toy), at_save, f"{options}: weights only")
        assert {kind for _, kind in gather_state(engine, toy, mesh)[0]} == {MASTER}
    return owned


STAGES = [{"zero": zero, "precision": precision} for zero in (0, 1, 2) for precision in ("fp32", "bf16")]


def test_resume_is_bit_exact_on_two_ranks():
    for loads in run_ranks(resume, 2, [{**stage, "ep": 2, "accumulation": 2} for stage in STAGES])[0]:
        assert min(loads) > 0.4 * sum(loads), f"bytes owned per rank: {loads}"


@pytest.mark.parametrize("etp", [2, 1])
def test_resume_is_bit_exact_with_tensor_parallelism(etp):
    run_ranks(resume, 4, [{"zero": z, "precision": "bf16", "tp": 2, "ep": 2, "etp": etp} for z in (0, 2)])


def test_resume_is_bit_exact_with_adafactor():
    layout = {"zero": 0, "precision": "bf16", "optimizer": "adafactor", "tp": 2, "ep": 2}
    run_ranks(resume, 4, [layout, {**layout, "etp": 1}], ADAFACTOR)


@pytest.mark.slow
def test_resume_is_bit_exact_at_other_stages():
    run_ranks(
        resume, 4, [{**stage, "tp": 2, "ep": 2, "etp": 1 + n % 2} for n, stage in enumerate(STAGES)], deadline_s=180
    )


def missing_state(rank: int, world: int, zero: int) -> None:
    _, mesh, toy, engine = start({"zero": zero})
    whole = {(name, kind): torch.zeros(shape) for name, shape in SHAPES.items() for kind in ADAM}
    read = reader(whole, toy, mesh, 1)
    with pytest.raises(CheckpointError, match="step"):
        engine.load_state(lambda name, kind: None)
    with pytest.raises(CheckpointError, match="'exp_avg_sq'"):
        engine.load_state(lambda name, kind: None if kind == "exp_avg_sq" else read(name, kind))
    with pytest.raises(CheckpointError, match="shape"):
        engine.load_state(lambda name, kind: read(name, kind)[..., :1] if kind == MASTER else read(name, kind))


@pytest.mark.parametrize("zero", [0, 1])
def test_missing_or_misshapen_state_is_named(zero):
    run_ranks(missing_state, 1, zero)


def poisoned(rank: int, world: int, cases: list[dict[str, Any]]) -> None:
    """Not-a-number from one rank: seen before the step, weights untouched, and forgotten after `discard_gradients`."""
    for options in cases:
        cfg, mesh, toy, engine = start(options)
        _, _, control_toy, control = start(options)
        train(engine, mesh, cfg, range(1))
        train(control, mesh, cfg, range(1))
        before = weights_of(toy)
        for reaction in ("step", "discard"):  # in this order: a refused step forgets gradients too
            for micro in range(cfg.train.accumulation):
                ids, targets = batch(1, micro)
                bad = rank == world - 1 and micro == 0
                engine.backward(engine.module(ids, targets * float("nan") if bad else targets))
            finite: list[Any] = [None] * world
            dist.all_gather_object(finite, bool(engine.gradients_finite()))
            assert not all(finite), options
            if reaction == "discard":
                engine.discard_gradients()
            else:
                with pytest.raises(NonFiniteError):
                    engine.step(LR)
            assert engine.steps_taken == 1
            assert_same(weights_of(toy), before, f"{options}: after {reaction}")
        assert train(engine, mesh, cfg, range(1, 3)) == train(control, mesh, cfg, range(1, 3)), options
        assert_same(weights_of(toy), weights_of(control_toy), f"{options}: trained on after a bad batch")


def test_non_finite_gradients_change_nothing():
    run_ranks(poisoned, 2, [{**stage, "accumulation": 2, "clip_norm": 0.1} for stage in STAGES])
