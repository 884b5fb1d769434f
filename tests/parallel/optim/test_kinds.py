"""An optimizer is one file and one row: a toy trains at ep 2, its moments travel, and its stage is checked."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from conf.compose import compose
from conf.errors import ConfigError
from conf.optimizers import OPTIMIZERS, OptimizerRow
from conf.rules.validate import validate
from parallel.engine.protocol import MASTER
from parallel.layers.sharding import tag
from parallel.mesh.axes import single_process
from parallel.optim.kinds import optimizer_kind
from tests.harness import run_ranks
from tests.parallel.engine.engine_toy import SHAPES, SPECS, logical_weights, oracle, run_config, take_shard
from tests.parallel.engine.test_engine_state import LR, resume, start, train, weights_of
from tests.parallel.optim import momentum


def resumed(rank: int, world: int, cases: list[dict]) -> None:
    momentum.register()
    resume(rank, world, cases, {MASTER, momentum.BUFFER})


def test_a_new_optimizer_trains_and_resumes_bit_for_bit_at_every_stage():
    run_ranks(resumed, 2, [{"zero": zero, "ep": 2, "optimizer": "momentum", "precision": "bf16"} for zero in (0, 1, 2)])


def plain(groups, cfg, lr):
    return torch.optim.SGD(groups, lr=lr, momentum=cfg.optim.beta1)


def compared(rank: int, world: int, layout: dict) -> float:
    momentum.register()
    cfg, mesh, toy, engine = start(layout)
    train(engine, mesh, cfg, range(3))
    wanted = oracle(cfg, 3, LR, shards=mesh.dp.size, build=plain)[-1].weights
    errors = [(value - take_shard(name, wanted[name], mesh)).abs().max() for name, value in weights_of(toy).items()]
    return float(max(errors))


def test_a_new_optimizer_computes_what_torch_does_in_one_process():
    assert max(run_ranks(compared, 2, {"zero": 0, "ep": 2, "optimizer": "momentum"})) < 1e-5


def test_the_row_decides_what_a_configuration_may_ask(monkeypatch):
    with pytest.raises(ConfigError, match=r"optim.name: got 'momentum'; needs one of adamw, adafactor"):
        compose(["optim.name=momentum"])
    monkeypatch.setitem(OPTIMIZERS, "momentum", OptimizerRow(module=momentum.__name__, zero=(0,), zero_reason="a test"))
    cfg = compose(["optim.name=momentum", "parallel.zero=0"])
    assert optimizer_kind(cfg.optim.name) is momentum.KIND
    with pytest.raises(ConfigError, match=r"parallel.zero: got 1; needs 0 with momentum: a test; try parallel.zero=0"):
        validate(replace(cfg, parallel=replace(cfg.parallel, zero=1)))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("parameter", SHAPES)
def test_fresh_state_is_what_a_first_step_makes(name, parameter):
    """Names, shapes and dtypes of moments that are loaded are those of moments that were trained."""
    kind = optimizer_kind(name)
    weight = tag(nn.Parameter(logical_weights()[parameter]), SPECS[parameter])
    optimizer = kind.build([{"params": [weight], "weight_decay": 0.0}], run_config(zero=0).optim, single_process())
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    trained, fresh = optimizer.state[weight], kind.fresh_state(weight, 1)
    assert int(trained["step"]) == int(fresh["step"]) == 1
    assert trained.keys() == fresh.keys()
    for moment in trained.keys() - {"step"}:
        assert (trained[moment].shape, trained[moment].dtype) == (fresh[moment].shape, fresh[moment].dtype)
        dims = kind.moment_dims(moment, weight)
        kept = range(weight.dim()) if dims is None else dims
        assert trained[moment].shape == tuple(weight.shape[dim] for dim in kept)
