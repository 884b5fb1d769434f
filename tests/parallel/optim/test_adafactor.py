"""Adafactor against a naive transcription of the paper, and cut against whole."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from parallel.layers.sharding import tag
from parallel.mesh.axes import Mesh, single_process
from parallel.mesh.groups import init_groups
from parallel.optim.adafactor import COLUMN, FULL, ROW, Adafactor, fresh_state, moment_dims
from tests.harness import run_ranks
from tests.parallel.engine.engine_toy import SHAPES, SPECS, logical_weights, run_config, take_shard

LR, STEPS = 0.02, 4


def gradient(name: str, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 * step + sorted(SHAPES).index(name))
    return torch.randn(SHAPES[name], generator=generator, dtype=torch.float64) * 0.1


def naive(name: str, decay: float = 0.0) -> torch.Tensor:
    """Algorithm 4-6 of the paper in fp64, expert by expert."""
    weight = logical_weights()[name].double()
    matrices = weight.unsqueeze(0) if weight.dim() < 3 else weight
    rows, columns = [0.0] * len(matrices), [0.0] * len(matrices)
    whole = 0.0
    for t in range(1, STEPS + 1):
        beta = 1 - t**-0.8
        grad = gradient(name, t)
        squared = grad**2 + run_config(zero=0).optim.epsilon
        update = torch.zeros_like(weight).reshape(matrices.shape)
        for e, (g, s) in enumerate(zip(grad.reshape(matrices.shape), squared.reshape(matrices.shape), strict=True)):
            if weight.dim() == 1:
                whole = beta * whole + (1 - beta) * s
                update[e] = g / whole.sqrt()
                continue
            rows[e] = beta * rows[e] + (1 - beta) * s.mean(dim=1)
            columns[e] = beta * columns[e] + (1 - beta) * s.mean(dim=0)
            update[e] = g / (torch.outer(rows[e], columns[e]) / rows[e].mean()).sqrt()
        update = update.reshape(weight.shape)
        update = update / max(1.0, float(update.square().mean().sqrt()))
        scale = max(1e-3, float(weight.square().mean().sqrt()))
        weight = weight * (1 - LR * decay) - LR * scale * update
    return weight


def trained(mesh: Mesh, decay: float = 0.0) -> dict[str, torch.Tensor]:
    parameters = {
        name: tag(nn.Parameter(take_shard(name, whole, mesh)), SPECS[name]) for name, whole in logical_weights().items()
    }
    groups = [{"params": list(parameters.values()), "weight_decay": decay}]
    optimizer = Adafactor(groups, run_config(zero=0).optim, mesh)
    optimizer.param_groups[0]["lr"] = LR
    for t in range(1, STEPS + 1):
        for name, parameter in parameters.items():
            parameter.grad = take_shard(name, gradient(name, t), mesh).float()
        optimizer.step()
    return {name: parameter.detach() for name, parameter in parameters.items()}


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("name", sorted(SHAPES))
def test_equals_the_paper(name, decay):
    error = (trained(single_process(), decay)[name] - naive(name, decay)).abs().max()
    assert error < 1e-4 * LR


def cut(rank: int, world: int, layout: dict[str, int]) -> None:
    mesh = init_groups(run_config(zero=0, **layout).parallel)
    for name, found in trained(mesh).items():
        error = (found - take_shard(name, naive(name), mesh)).abs().max()
        assert error < 1e-4 * LR, f"{layout}: {name} off by {error / LR:.1e} learning rates"


@pytest.mark.parametrize(("world", "layout"), [(2, {"tp": 2}), (2, {"ep": 2}), (4, {"tp": 2, "ep": 2})])
def test_cut_tensors_get_the_update_of_whole_ones(world, layout):
    run_ranks(cut, world, layout)


def test_state_shapes():
    matrix = tag(nn.Parameter(torch.zeros(4, 6, 10)), SPECS["wi"])
    vector = tag(nn.Parameter(torch.zeros(6)), SPECS["norm"])
    shapes = {kind: tuple(v.shape) for kind, v in fresh_state(matrix, 3).items() if kind != "step"}
    assert shapes == {ROW: (4, 6), COLUMN: (4, 10)}
    assert moment_dims(ROW, matrix) == (0, 1)
    assert moment_dims(COLUMN, matrix) == (0, 2)
    assert moment_dims("master", matrix) is None
    assert set(fresh_state(vector, 3)) == {"step", FULL}


def test_zero_gradient_changes_nothing_and_stays_finite():
    weight = tag(nn.Parameter(torch.ones(4, 6)), SPECS["column"])
    optimizer = Adafactor([{"params": [weight], "weight_decay": 0.0}], run_config(zero=0).optim, single_process())
    optimizer.param_groups[0]["lr"] = LR
    weight.grad = torch.zeros(4, 6)
    optimizer.step()
    assert torch.equal(weight, torch.ones(4, 6))
