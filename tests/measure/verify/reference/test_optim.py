"""The reference's Adafactor against the paper's formulas, element by element."""

import math
from dataclasses import replace

import pytest
import torch

from measure.verify.reference.optim import build_reference
from tests.settings import OPTIM

ADAFACTOR = replace(OPTIM, name="adafactor", beta1=0.0, epsilon=1e-30)


def by_hand(x, grads, lr, decay):
    """Algorithms 4 and 5 of arXiv 1804.04235 with plain lists, for a matrix."""
    rows, columns = len(x), len(x[0])
    r, c = [0.0] * rows, [0.0] * columns
    for t, g in enumerate(grads, start=1):
        beta = 1 - t**-0.8
        for i in range(rows):
            r[i] = beta * r[i] + (1 - beta) * sum(v * v for v in g[i]) / columns
        for j in range(columns):
            c[j] = beta * c[j] + (1 - beta) * sum(g[i][j] ** 2 for i in range(rows)) / rows
        mean = sum(r) / rows
        u = [[g[i][j] / math.sqrt(r[i] * c[j] / mean) for j in range(columns)] for i in range(rows)]
        clip = max(1.0, math.sqrt(sum(v * v for line in u for v in line) / (rows * columns)))
        scale = max(1e-3, math.sqrt(sum(v * v for line in x for v in line) / (rows * columns)))
        x = [
            [x[i][j] * (1 - lr * decay) - lr * scale * u[i][j] / clip for j in range(columns)] for i in range(rows)
        ]  # fmt: skip
    return x


@pytest.mark.parametrize("decayed", [True, False])
def test_matrices_follow_the_paper(decayed):
    torch.manual_seed(0)
    start, grads = torch.randn(3, 4).double(), [torch.randn(3, 4).double() for _ in range(3)]
    x = torch.nn.Parameter(start.clone())
    optimizer = build_reference(ADAFACTOR, {"x": x}, {"x": decayed})
    for grad in grads:
        x.grad = grad.clone()
        for group in optimizer.param_groups:
            group["lr"] = 0.1
        optimizer.step()
    expected = by_hand(start.tolist(), [grad.tolist() for grad in grads], 0.1, 0.1 if decayed else 0.0)
    assert torch.allclose(x.detach(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12)


def test_vectors_keep_the_whole_moment_and_banks_are_matrices_apart():
    vector, bank = torch.nn.Parameter(torch.ones(4)), torch.nn.Parameter(torch.ones(2, 3, 5))
    optimizer = build_reference(ADAFACTOR, {"v": vector, "b": bank}, {"v": False, "b": True})
    vector.grad, bank.grad = torch.rand(4), torch.rand(2, 3, 5)
    optimizer.step()
    assert optimizer.state[vector]["exp_avg_sq"].shape == (4,)
    assert optimizer.state[bank]["exp_avg_sq_row"].shape == (2, 3)
    assert optimizer.state[bank]["exp_avg_sq_col"].shape == (2, 5)


def test_an_expert_without_tokens_stays_as_it_is():
    bank = torch.nn.Parameter(torch.ones(2, 3, 5))
    optimizer = build_reference(ADAFACTOR, {"b": bank}, {"b": False})
    bank.grad = torch.rand(2, 3, 5) * 1e-4
    bank.grad[1] = 0.0
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    optimizer.step()
    assert bank.isfinite().all()
    assert torch.equal(bank[1], torch.ones(3, 5))
    assert (bank[0] != 1.0).all()
