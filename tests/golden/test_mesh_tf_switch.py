"""The Switch router and layer against recorded runs of Mesh-TensorFlow (gating `switch`): integers exactly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from conf.derive import expert_capacity
from conf.routing import router_settings
from conf.schema import MoeConfig
from model.moe.experts import ExpertBank
from model.moe.gather import combine, dispatch, slot_index
from model.moe.router import route
from model.moe.types import Routing
from parallel.dispatch import LocalExchange
from tests.golden.reader import GOLDEN, GoldenCase, distance, read_cases, read_table
from tests.model.moe.build import model_config

FOLDER = GOLDEN / "mesh_tf"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the recorded reference runs (../shared/golden) are absent")
CASES = [case for case in read_cases(FOLDER) if case.config["gating"] == "switch"] if FOLDER.is_dir() else []
FLOAT32 = [case for case in CASES if case.config["act"] == "float32"]
BF16 = [case for case in CASES if case.config["act"] == "bfloat16"]


def name(case: GoldenCase) -> str:
    return case.name


def moe_of(config: dict) -> MoeConfig:
    return MoeConfig(
        semantics="mesh_tf", decoder_router=None, top_k=None, second_policy="all", second_threshold=0.2,
        second_loss_weight=0.0, router_precision="fp32", padding="semantics", defects="reproduced", router="switch",
        num_experts=config["experts"], sparse_every=2, decoder_sparse_every=None,
        capacity_factor=config["capacity_factor_train"], eval_capacity_factor=config["capacity_factor_eval"],
        min_expert_capacity=config["min_expert_capacity"], group_sequences=1, jitter=config.get("jitter", 0.0),
        aux_loss_weight=config["loss_coef"], z_loss_weight=config["z_loss"] or 0.0, expert_dropout=0.0,
    )  # fmt: skip


class Run:
    """Our layer on a case's input, grouped as the reference grouped it."""

    def __init__(self, case: GoldenCase, dtype: torch.dtype) -> None:
        self.case, self.config, self.want = case, case.config, case.arrays()
        moe = moe_of(self.config)
        self.groups, tokens = case.scalars["groups"], case.scalars["tokens_per_group"]
        self.capacity = expert_capacity(moe, tokens, train=self.config["train"])
        self.x = self.want["x"].to(dtype).requires_grad_()
        router_dtype = torch.float32 if dtype == torch.bfloat16 else dtype
        self.router = self.want["router_kernel"].to(router_dtype).requires_grad_()
        shape = (self.groups, tokens)
        importance = self.want.get("importance", torch.ones(self.x.shape[:2]))
        self.real = importance.view(shape) == 1
        x_GSD = self.x.view(*shape, -1)
        self.routing: Routing = route(
            x_GSD, self.real, self.router, settings=router_settings(moe, "encoder"), capacity=self.capacity,
        )  # fmt: skip
        model = model_config("relu", d_model=self.config["d_model"], d_ff=self.config["d_ff"])
        self.experts = ExpertBank(model, moe, name="encoder.1", exchange=LocalExchange()).to(dtype)
        self.experts.wi.data.copy_(self.want["wi"])
        self.experts.wo.data.copy_(self.want["wo"])
        index = slot_index(self.routing)
        exchange = LocalExchange()
        rows = exchange.to_experts(dispatch(x_GSD, index))
        rows = self.experts(rows, capacity=self.capacity, noise=None)
        self.gates = self.routing.gates_GSK.to(dtype)
        self.y = combine(exchange.from_experts(rows, groups=self.groups), self.gates, index).view_as(self.x)

    def loss_gating(self) -> Tensor:
        """Auxiliary loss per micro-batch plus the z-loss, before the reference's coefficient."""
        micro = self.config["num_microbatches"]
        loss = self.routing.aux_loss / self.groups / micro
        if self.config["train"] and self.config["z_loss"]:
            loss = loss + self.config["z_loss"] * self.routing.z_sum / (self.real.sum() * micro)
        return loss

    def check_integers(self) -> None:
        """Capacity, first choices, slots and kept sets."""
        scalars, want, slots = self.case.scalars, self.want, self.routing.slots_GSK[..., 0]
        assert self.capacity == scalars["capacity"]
        assert torch.equal(self.routing.logits_GSE.softmax(-1).argmax(-1), want["expert"].long())
        kept = slots < self.config["experts"] * self.capacity
        assert torch.equal(kept, want["kept"].bool())
        assert torch.equal(torch.where(kept, slots % self.capacity, -1), want["slot"].long())
        rows = [
            [g, int(self.routing.tokens_GEC[g, e, c]), e, c]
            for g, e, c in (self.routing.tokens_GEC < self.real.shape[1]).nonzero().tolist()
        ]
        assert sorted(rows) == want["coo_index"].tolist()
        assert len(rows) == scalars["n_dispatched"] == int(self.routing.stats.kept_E.sum())


@pytest.mark.parametrize("case", FLOAT32, ids=name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_float32_case(case, dtype):
    run = Run(case, dtype)
    run.check_integers()
    assert distance(run.routing.logits_GSE, run.want["logits"]) < 2e-5
    assert distance(run.gates[..., 0], run.want["gate"]) < 2e-5
    assert distance(run.y, run.want["y"]) < 2e-5
    loss = run.loss_gating()
    assert loss.item() == pytest.approx(case.scalars["loss_gating"], rel=1e-5)
    assert loss.item() * case.config["loss_coef"] == pytest.approx(case.scalars["loss_final"], rel=1e-5)
    if case.config["train"]:
        check_logged(run)


def check_logged(run: Run) -> None:
    """The scalars the reference logs in training."""
    scalars, stats, micro = run.case.scalars, run.routing.stats, run.config["num_microbatches"]
    aux = run.routing.aux_loss.item() / run.groups / micro
    assert aux == pytest.approx(scalars["log_aux_loss"], rel=1e-5)
    assert distance(stats.load_E / stats.load_E.sum(), run.want["expert_fraction"]) < 1e-5
    if "log_z_loss" in scalars:
        assert run.routing.z_sum.item() / (int(stats.tokens) * micro) == pytest.approx(scalars["log_z_loss"], rel=1e-5)
    if run.config["padding"] == "ones":  # with padding the reference's means count it; ours are over real tokens
        assert float(stats.entropy / stats.tokens) == pytest.approx(scalars["log_entropy"], rel=1e-5)
        assert float(stats.confidence / stats.tokens) == pytest.approx(scalars["log_expert_gate"], rel=1e-5)


@pytest.mark.parametrize("case", FLOAT32, ids=name)
def test_float32_gradients(case):
    run = Run(case, torch.float64)
    inputs = (run.x, run.router, run.experts.wi, run.experts.wo)
    grads = torch.autograd.grad((run.y * run.want["cotangent"]).sum(), inputs, retain_graph=True)
    for key, grad in zip(("grad_out_x", "grad_out_router", "grad_out_wi", "grad_out_wo"), grads, strict=True):
        assert distance(grad, run.want[key]) < 1e-4, key
    grads = torch.autograd.grad(run.loss_gating() * run.config["loss_coef"], inputs[:2])
    for key, grad in zip(("grad_loss_x", "grad_loss_router"), grads, strict=True):
        assert distance(grad, run.want[key]) < 1e-4, key


@pytest.mark.parametrize("case", BF16, ids=name)
def test_bf16_case(case):
    run = Run(case, torch.bfloat16)
    run.check_integers()
    assert distance(run.routing.logits_GSE, run.want["logits"]) < 2e-5  # fp32 from the rounded weight
    assert distance(run.gates[..., 0], run.want["gate"]) < 2e-2
    assert distance(run.y, run.want["y"]) < 2e-2
    assert run.y.dtype == torch.bfloat16
    assert run.loss_gating().item() == pytest.approx(case.scalars["loss_gating"], rel=1e-2)


def test_every_recorded_switch_case_is_checked():
    assert len(FLOAT32) == 17
    assert len(BF16) == 2


def test_capacity_table():
    rows = read_table(FOLDER, "capacity_table.json")
    assert rows
    for row in rows:
        config = {
            "experts": row["experts"], "capacity_factor_train": row["capacity_factor"], "capacity_factor_eval": 99.0,
            "min_expert_capacity": row["min_expert_capacity"], "loss_coef": 0.01, "z_loss": None,
        }  # fmt: skip
        assert expert_capacity(moe_of(config), row["tokens_per_group"], train=True) == row["capacity"], row
