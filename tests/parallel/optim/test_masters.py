"""The ZeRO 0 optimizer alone: fp32 sums, the true norm, clipping, refusal of non-finite gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from conf.errors import NonFiniteError
from parallel.layers.sharding import ParamSpec, tag
from parallel.mesh.axes import Mesh, single_process
from parallel.mesh.groups import init_groups
from parallel.optim import adamw
from parallel.optim.masters import ROW, MasterOptimizer, sum_of_squares
from parallel.optim.parameters import is_counted, optim_groups
from tests.harness import run_ranks
from tests.parallel.engine.engine_toy import SHAPES, SPECS, Toy, logical_weights, run_config, take_shard

CFG = run_config(zero=0)


def masters(module: nn.Module, mesh: Mesh, clip_norm: float = 0.0, *, scales: bool = True) -> MasterOptimizer:
    groups = optim_groups(module, CFG.optim.weight_decay)
    optimizer = MasterOptimizer(
        groups, lambda g: adamw.build(g, CFG.optim, mesh), mesh, clip_norm=clip_norm, scales_gradients=scales
    )
    optimizer.set_lr(0.1)
    return optimizer


def one_weight(dtype: torch.dtype) -> nn.Module:
    module = nn.Module()
    module.weight = tag(nn.Parameter(torch.ones(1, 1, dtype=dtype)), ParamSpec(dims=("ff", "embed")))
    return module


def test_low_precision_gradients_are_summed_in_fp32():
    module = one_weight(torch.bfloat16)
    optimizer = masters(module, single_process())
    for term in (1.0, 2**-9, 2**-9):  # in bf16 each small term would be lost
        (module.weight * term).sum().backward()
    assert module.weight.grad is None
    assert optimizer.gradient_sums()[module.weight].item() == 1.0 + 2**-8


def test_masters_move_by_less_than_bf16_can_show():
    module = one_weight(torch.bfloat16)
    optimizer = masters(module, single_process())
    optimizer.set_lr(1e-4)
    (module.weight * 1.0).sum().backward()
    optimizer.step()
    assert module.weight.item() == 1.0
    assert optimizer.master_of[module.weight].item() == pytest.approx(1.0 - 1e-4 - 1e-5, rel=1e-6)
    assert module.weight.grad is None


def test_fp32_weights_are_their_own_masters():
    module = one_weight(torch.float32)
    assert masters(module, single_process()).master_of[module.weight] is module.weight


def test_the_norm_of_many_elements_is_exact():
    weight = nn.Parameter(torch.zeros(2**20, 1))
    module = nn.Module()
    module.weight = tag(weight, ParamSpec(dims=("ff", "embed")))
    weight.grad = torch.rand(2**20, 1, generator=torch.Generator().manual_seed(0))
    assert masters(module, single_process()).global_norm().item() == pytest.approx(weight.grad.double().norm().item())


@pytest.mark.parametrize("size", [1, ROW - 1, ROW, 3 * ROW + 5])
def test_squares_of_any_number_of_elements(size):
    values = torch.randn(size, generator=torch.Generator().manual_seed(size))
    assert sum_of_squares(values).item() == pytest.approx(values.double().square().sum().item(), rel=1e-6)


@pytest.mark.parametrize("scales", [True, False])
@pytest.mark.parametrize(("clip_norm", "expected"), [(0.0, 3.0), (5.0, 3.0), (1.5, 1.5)])
def test_clipping(clip_norm, expected, scales):
    module = one_weight(torch.float32)
    optimizer = masters(module, single_process(), clip_norm, scales=scales)
    (module.weight * 3.0).sum().backward()
    optimizer.step()
    assert optimizer.grad_norm == pytest.approx(3.0)
    first_moment = optimizer.inner.state[module.weight]["exp_avg"].item()
    assert first_moment == pytest.approx((1 - CFG.optim.beta1) * expected, rel=1e-5)


def test_non_finite_norm_changes_nothing():
    module = one_weight(torch.float32)
    optimizer = masters(module, single_process(), 1.0)
    (module.weight * float("inf")).sum().backward()
    with pytest.raises(NonFiniteError):
        optimizer.step()
    assert module.weight.item() == 1.0
    assert not optimizer.inner.state
    assert optimizer.gradient_sums()[module.weight].item() == 0.0


def copy_that_is_not_finite(rank: int, world: int) -> tuple[bool, list[str]]:
    mesh = init_groups(run_config(zero=0, tp=2).parallel)
    module = Toy(mesh, torch.float32, logical_weights())
    optimizer = masters(module, mesh)
    copies = [name for name, p in module.named_parameters() if not is_counted(p, mesh)]
    for name, parameter in module.named_parameters():
        parameter.grad = torch.full_like(parameter, float("nan") if name in copies[:1] else 1.0)
    return bool(optimizer.gradients_finite()), copies


def test_copies_that_another_rank_counts_must_be_finite_too():
    finite, copies = zip(*run_ranks(copy_that_is_not_finite, 2), strict=True)
    assert copies[0] == []
    assert copies[1] != []
    assert finite == (True, False)


def test_groups_follow_the_tags():
    module = Toy(single_process(), torch.bfloat16, logical_weights())
    names = {parameter: name for name, parameter in module.named_parameters()}
    found = {
        (group.dtype, group.is_expert, group.weight_decay): {names[p] for p in group.params}
        for group in optim_groups(module, 0.1)
    }
    assert found == {
        (torch.bfloat16, False, 0.1): {"table", "column", "row"},
        (torch.float32, False, 0.0): {"norm"},
        (torch.float32, False, 0.1): {"router"},
        (torch.bfloat16, True, 0.1): {"wi", "wo"},
    }


def norm_of_shards(rank: int, world: int, layouts: list[dict[str, int]]) -> list[float]:
    """Every rank has its shard of one logical gradient; the norm must count each element once."""
    norms = []
    for layout in layouts:
        mesh = init_groups(run_config(zero=0, **layout).parallel)
        module = Toy(mesh, torch.float32, logical_weights())
        optimizer = masters(module, mesh)
        for name, parameter in module.named_parameters():
            parameter.grad = take_shard(name, logical_weights(seed=3)[name], mesh)
        norms.append(float(optimizer.global_norm()))
    return norms


def test_norm_counts_every_logical_element_once():
    layouts = [
        {},
        {"tp": 2},
        {"tp": 2, "etp": 1},
        {"ep": 2},
        {"ep": 4},
        {"tp": 2, "ep": 2},
        {"tp": 2, "ep": 4, "etp": 1},
    ]
    expected = torch.cat([w.flatten() for w in logical_weights(seed=3).values()]).norm().item()
    assert set(SHAPES) == set(SPECS)
    for norms in run_ranks(norm_of_shards, 4, layouts):
        assert norms == pytest.approx([expected] * len(layouts), rel=1e-6)
