"""Compiled steps: a graph for each kind of block or one for the model, never another for another step, equal bits."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensor, FakeTensorMode

from conf.errors import ConfigError
from conf.routing.routers import ROUTERS
from conf.schema import CapacityName, MoeConfig
from model.compiled import compile_steps
from model.t5.model import SwitchTransformer
from parallel.rng import NoiseKey
from tests.model.layouts import Layout, assert_equals_one_process
from tests.model.t5.build import MOE, make_batch, make_model, run_config

# Two blocks of a kind, experts in every second layer; the decoder has one block of each kind.
SMALL: dict[str, Any] = {"num_encoder_layers": 4, "num_decoder_layers": 2, "dropout": 0.1}
STEPS = 3
SLOW = pytest.mark.slow


class Graphs:
    """A backend of torch.compile that runs what was traced as it is, and counts."""

    def __init__(self) -> None:
        self.traced = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        self.traced += 1
        return graph.forward


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def experts(router: str, capacity: CapacityName = "bounded") -> MoeConfig:
    moe = replace(MOE, router=router, capacity=capacity, jitter=0.05, expert_dropout=0.2, second_policy="random")
    return replace(moe, top_k=2) if router == "ntlb" else moe


def steps(module: SwitchTransformer) -> list[torch.Tensor]:
    """Losses and all gradients of some steps."""
    found = []
    for step in range(STEPS):
        batch = make_batch(seed=step)
        rows_B = torch.arange(len(batch.encoder_BL)) + 4 * step
        key = NoiseKey(seed=1, step=step, rows_B=rows_B)
        out = module(batch.encoder_BL, batch.targets_BT, mode="train", noise=key)
        (out.token_loss_BT.sum() + sum(layer.aux_loss for layer in out.layers)).backward()
        found += [out.token_loss_BT.detach(), *(p.grad.clone() for p in module.parameters() if p.grad is not None)]
        module.zero_grad()
    return found


@pytest.mark.parametrize(
    ("whole", "recompute"),
    [
        pytest.param(False, False, marks=SLOW),
        pytest.param(False, True, marks=SLOW),
        pytest.param(True, False, marks=SLOW),
    ],
)
def test_every_step_runs_the_same_graphs_and_gives_the_same_bits(whole, recompute):
    build = functools.partial(make_model, moe="switch", experts=experts("switch"), recompute=recompute, **SMALL)
    module, graphs = build(), Graphs()
    module.compile_steps(functools.partial(torch.compile, backend=graphs, fullgraph=True, dynamic=False), whole=whole)
    for got, want in zip(steps(module), steps(build()), strict=True):
        assert torch.equal(got, want)
    # Dense and expert blocks of either stack; `fullgraph` makes any break an error.
    assert graphs.traced == (1 if whole else 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("router", "capacity"),
    [*((router, "bounded") for router in ROUTERS if router != "switch"), ("switch", "dropless"), ("top_2", "dropless")],
)
def test_every_router_is_one_graph(router, capacity):
    build = functools.partial(make_model, moe="switch", experts=experts(router, capacity))
    module, graphs = build(), Graphs()
    module.compile_steps(functools.partial(torch.compile, backend=graphs, fullgraph=True, dynamic=False), whole=False)
    for got, want in zip(steps(module), steps(build()), strict=True):
        assert torch.equal(got, want)
    assert graphs.traced == 4


@pytest.mark.parametrize(
    ("router", "capacity"),
    [("switch", "bounded"), ("switch", "dropless"), *(pytest.param(r, "bounded", marks=SLOW) for r in ROUTERS)],
)
def test_a_whole_step_runs_under_fake_tensors(router, capacity):
    module = make_model(moe="switch", experts=experts(router, capacity))
    with FakeTensorMode(allow_non_fake_inputs=True):
        losses, *gradients = steps(module)[: 1 + len(list(module.parameters()))]
    assert all(isinstance(value, FakeTensor) for value in (losses, *gradients))


@pytest.mark.slow
@pytest.mark.parametrize("layout", [Layout(world=2, ep=2), Layout(world=2, tp=2)], ids=["ep2", "tp2"])
def test_ranks_compile_what_lies_between_their_collectives(layout):
    cfg = run_config(moe="switch", experts=experts("switch"), recompute=False)
    assert_equals_one_process(layout, cfg, compiled=True)


def test_evaluation_and_generation_are_not_compiled():
    module, graphs = make_model(moe="switch"), Graphs()
    module.compile_steps(functools.partial(torch.compile, backend=graphs), whole=True)
    batch = make_batch()
    module(batch.encoder_BL, batch.targets_BT, mode="eval", noise=None)
    module.start_decoding(batch.encoder_BL, copies=1, max_length=2, mode="no_drop")
    assert graphs.traced == 0


def test_a_machine_without_a_compiler_is_told_before_anything_runs(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    cfg: Any = SimpleNamespace(train=SimpleNamespace(compile="blocks"), data=SimpleNamespace(cache_dir=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"train\.compile: got 'no C\+\+ compiler on this machine'; needs g\+\+"):
        compile_steps(make_model(), cfg, torch.device("cpu"))
