"""Runs recordings of Mesh-TensorFlow's layer (every gating function) against ours.

Shape suffixes: G groups, S tokens per group, D d_model, E experts, K slots per token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conf.derived.groups import expert_capacity
from conf.routing.routers import ROUTERS as ROWS
from conf.routing.settings import moe_rules
from conf.schema import MoeConfig
from model.moe.types import Routing
from tests.golden.compare import (
    Case,
    Comparison,
    Unsupported,
    close,
    compare_tables,
    exact,
    only_known,
    require,
    runner,
    scalar,
    unknown,
)
from tests.golden.dispatch import DTYPES, coo, dtype_name, expert_bank, grads_of, run_experts
from tests.golden.grouping import mesh_tf_groups
from tests.golden.reader import GoldenCase, read_cases
from tests.model.moe.routers.call import route_tokens
from tests.model.t5.build import MOE

ROUTERS: dict[str, str] = {
    "switch": "switch",
    "top_2": "top_2",
    "switch_max": "switch_max",
    "ntlb": "ntlb",
    "expert_selection": "expert_choice",
}
SETTINGS = [
    "gating",
    "batch",
    "length",
    "d_model",
    "experts",
    "d_ff",
    "group_size",
    "capacity_factor_train",
    "capacity_factor_eval",
    "min_expert_capacity",
    "train",
    "policy",
    "padding",
    "z_loss",
    "num_microbatches",
    "act",
    "loss_coef",
    "data_seed",
    "jitter",
    "special",
    "grads",
    "second_place_loss",
    "second_policy",
    "second_threshold",
    "ntlb_top_k",
    "kernel_bf16_exact",
]
# Two to ten times the largest errors that were measured ( logits 0, gates 6e-7, outputs 4e-7,
# losses 5e-7, gradients of outputs 3e-5 with one expert taking all, of losses 6e-6; bf16 0).
FP32 = {"logits": 4e-6, "gate": 4e-6, "y": 4e-6, "loss": 2e-6, "grad_out": 1e-4, "grad_loss": 5e-5}
BF16 = {"logits": 4e-6, "gate": 4e-3, "y": 1e-2, "loss": 2e-3, "grad_out": 2e-2, "grad_loss": 2e-2}


def moe_of(config: dict[str, Any]) -> MoeConfig:
    """Our settings for a case: the reference to the letter, its defects included."""
    router = ROUTERS[config["gating"]]
    return replace(
        MOE, semantics="mesh_tf", router=router, top_k={"ntlb": config.get("ntlb_top_k"), "top_2": 2}.get(router),
        second_policy=config.get("second_policy", "all"), second_threshold=config.get("second_threshold", 0.2),
        second_loss_weight=0.5 if config.get("second_place_loss") else 0.0, defects="reproduced",
        num_experts=config["experts"], capacity_factor=config["capacity_factor_train"],
        eval_capacity_factor=config["capacity_factor_eval"], min_expert_capacity=config["min_expert_capacity"],
    )  # fmt: skip


def check_known(case: GoldenCase) -> None:
    """Raise `Unsupported` for settings whose result is random or that the reference's layer does not have."""
    config = case.config
    only_known(case.name, config, SETTINGS)
    require(case.name, "gating", config["gating"], ROUTERS)
    require(case.name, "act", config["act"], DTYPES)
    policies = ["argmax", "input_jitter"] if config["train"] else ["argmax", "input_jitter", "input_dropout"]
    require(case.name, "policy", config["policy"], policies)
    if config["train"] and config["policy"] == "input_jitter":
        require(case.name, "jitter of a training case", config.get("jitter"), [0.0])
    require(case.name, "second_policy", config.get("second_policy", "all"), ["all", "none", "threshold"])


class MeshCase:
    """Our layer on a case's input, grouped as the reference groups it."""

    def __init__(self, case: GoldenCase) -> None:
        check_known(case)
        self.case, self.config, self.want = case, case.config, case.arrays()
        self.dtype = DTYPES[self.config["act"]]
        self.moe = moe_of(self.config)
        groups = mesh_tf_groups(self.config["batch"] * self.config["length"], self.config["group_size"])
        assert groups is not None, "a mesh of 1 divides everything"
        self.G, self.S = groups
        self.capacity = expert_capacity(self.moe, self.S, train=self.config["train"])
        if self.capacity > self.S and ROWS[self.moe.router].looks_ahead:
            raise Unsupported(
                f"{case.name}: {self.config['gating']} with a capacity of {self.capacity} for {self.S} tokens, which "
                "the reference refuses or, up to 4, fills with the same token twice"
            )
        rules = moe_rules(self.moe, "encoder")
        self.x = self.want["x"].to(self.dtype).requires_grad_()
        self.kernel = self.want["router_kernel"].clone().requires_grad_()
        mask = self.want.get("importance", torch.ones(self.x.shape[:2]))
        self.importance_GS = mask.view(self.G, self.S)
        self.real_GS = self.importance_GS == 1
        x_GSD = self.x.view(self.G, self.S, -1)
        self.routing: Routing = route_tokens(
            x_GSD, self.real_GS, self.kernel, rules=rules, capacity=self.capacity,
            importance_GS=self.importance_GS,
        )  # fmt: skip
        self.gates_GSK = self.routing.gates_GSK.to(self.dtype)
        self.experts = expert_bank(self.moe, self.want["wi"], self.want["wo"], self.dtype)
        self.y = run_experts(x_GSD, self.routing, self.gates_GSK, self.experts, self.dtype).view_as(self.x)
        self.coo = coo(self.routing, self.gates_GSK)
        self._losses()

    def _losses(self) -> None:
        """The losses as the layer returns them: rounded to the activations' dtype, weighted, rounded again."""
        micro, config = self.config["num_microbatches"], self.config
        self.aux, self.z = self.routing.aux_loss / self.G / (micro or 1), None
        loss, switch = self.aux, config["gating"] == "switch"
        # Releases of the reference differ in whether gating functions besides switch have a z-loss; those that do log
        # it, and log the auxiliary loss after it was added.
        if config["train"] and config["z_loss"] is not None and (switch or "log_z_loss" in self.case.scalars):
            # The reference multiplies by the mask, so that its gradient is nan, too, where no token is real.
            z_sum = self.routing.z_sum + 0 * self.routing.logits_GSE.sum()
            self.z = z_sum / (self.real_GS.sum() * micro)
            loss = loss + config["z_loss"] * self.z
            self.aux = self.aux if switch else loss
        self.loss_gating = loss.to(self.dtype)
        self.loss_final = self.loss_gating * torch.tensor(config["loss_coef"], dtype=self.dtype)

    def logged(self) -> dict[str, Tensor]:
        """The scalars that the reference logs in training; its means count padding."""
        logits_GSE, choices = self.routing.logits_GSE, self.routing.choices_GSQ[..., 0]
        over = -1
        if self.config["gating"] == "expert_selection":
            logits_GSE, over = logits_GSE.masked_fill((self.importance_GS == 0).unsqueeze(-1), -1e9), 1
        p_GSE = (logits_GSE - logits_GSE.logsumexp(over, keepdim=True)).exp().float()
        values = {
            "log_entropy": -(p_GSE * (p_GSE + 1e-9).log()).sum(over).mean(),
            "log_aux_loss": self.aux,
            "log_expert_gate": p_GSE.gather(-1, choices.unsqueeze(-1)).mean(),
            "log_fraction_routed": len(self.coo.index_n4) / self.importance_GS.sum(),
        }
        return values if self.z is None else {**values, "log_z_loss": self.z}

    def integers(self) -> dict[str, Tensor]:
        """Arrays that must be equal."""
        slot_GS = self.routing.slots_GSK[..., 0]
        kept_GS = slot_GS < self.config["experts"] * self.capacity
        return {
            "coo_index": self.coo.index_n4,
            "expert": self.routing.choices_GSQ[..., 0],
            "slot": torch.where(kept_GS, slot_GS % self.capacity, -1),
            "kept": kept_GS,
        }

    def floats(self) -> dict[str, tuple[Tensor, str]]:
        """Arrays within a tolerance, with its kind."""
        asked_GSQ = self.routing.choices_GSQ.masked_fill(~self.real_GS.unsqueeze(-1), self.config["experts"])
        counts_E = torch.bincount(asked_GSQ.flatten(), minlength=self.config["experts"] + 1)[:-1]
        return {
            "logits": (self.routing.logits_GSE, "logits"),
            "coo_weight": (self.coo.weight_n, "gate"),
            "gate": (self.gates_GSK[..., 0], "gate"),
            "y": (self.y, "y"),
            "expert_fraction": (counts_E / counts_E.sum(), "loss"),
        }

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Gradients that are recorded."""
        inputs = (self.x, self.kernel, self.experts.wi, self.experts.wo)
        names = ("x", "router", "wi", "wo")
        if any(name.startswith("grad_out_") for name in self.want):
            grads = grads_of((self.y * self.want["cotangent"]).sum(), inputs)
            yield from zip((f"grad_out_{name}" for name in names), grads, strict=True)
        if any(name.startswith("grad_loss_") for name in self.want):
            grads = grads_of(self.loss_final, inputs)
            yield from zip((f"grad_loss_{name}" for name in names), grads, strict=True)

    @property
    def ulp(self) -> float:
        """Relative error of two probabilities in fp32: exp(logit - logsumexp) carries that of its exponent."""
        return 2.0**-22 * max(1.0, float(self.routing.logits_GSE.detach().abs().max()))

    def noise(self, name: str) -> float:
        """The rounding error of a router's gradient, of which little else is left where its terms cancel: with p near 0
        or 1, or with a uniform f. Errors of tokens are independent, so over n of them their sum grows by sqrt(n)."""
        terms_BL = (self.y * self.want.get("cotangent", 0)).detach().abs().sum(-1)
        loss, tokens = abs(float(self.loss_final.detach())), self.G * self.S
        if name == "grad_out_router":
            return self.ulp * float(terms_BL.norm() * self.x.detach().abs().max())
        if name == "grad_loss_router":
            return self.ulp * loss / math.sqrt(tokens) * float(self.x.detach().abs().max())
        if name == "grad_loss_x":
            return self.ulp * loss / tokens * float(self.kernel.detach().abs().max())
        return 0.0


INPUTS = ("x", "router_kernel", "wi", "wo", "cotangent", "importance")


def compare_case(case: GoldenCase) -> Iterator[Comparison]:
    """Every scalar and array of one case."""
    ours = MeshCase(case)
    limits = FP32 if ours.dtype == torch.float32 else BF16
    names: dict[str, Any] = {"groups": ours.G, "tokens_per_group": ours.S, "capacity": ours.capacity}
    names |= {"n_dispatched": len(ours.coo.index_n4), "combine_dtype": dtype_name(ours.gates_GSK.dtype)}
    names |= {"loss_dtype": dtype_name(ours.loss_final.dtype), "y_dtype": dtype_name(ours.y.dtype)}
    names |= {"logits_dtype": dtype_name(ours.routing.logits_GSE.dtype)}
    numbers = {"loss_gating": ours.loss_gating, "loss_final": ours.loss_final, **ours.logged()}
    for name, value in case.scalars.items():
        if name in names:
            yield exact(name, names[name], value)
        elif name in numbers:
            yield scalar(name, numbers[name], value, limits["loss"], noise=ours.ulp if name == "log_entropy" else 0)
        else:
            yield unknown("scalar", name)
    integers, floats, grads = ours.integers(), ours.floats(), dict(ours.gradients())
    for name, recorded in ours.want.items():
        if name in integers:
            yield exact(name, integers[name], recorded)
        elif name in floats:
            yield close(name, floats[name][0], recorded, limits[floats[name][1]])
        elif name in grads:
            yield close(name, grads[name], recorded, limits[name[: name.rindex("_")]], noise=ours.noise(name))
        elif name not in INPUTS:
            yield unknown("array", name)


def capacity_row(row: dict[str, Any]) -> dict[str, Any]:
    """Groups and capacity of a table row."""
    groups = mesh_tf_groups(row["n_tokens"], row["max_group_size"])
    assert groups is not None
    config = {
        "gating": "switch", "experts": row["experts"], "capacity_factor_train": row["capacity_factor"],
        "capacity_factor_eval": math.pi, "min_expert_capacity": row["min_expert_capacity"],
    }  # fmt: skip
    capacity = expert_capacity(moe_of(config), groups.size, train=True)
    return {"groups": groups.number, "tokens_per_group": groups.size, "capacity": capacity}


def group_row(row: dict[str, Any]) -> dict[str, Any]:
    """Groups of a table row."""
    groups = mesh_tf_groups(row["n_tokens"], row["max_group_size"], row["mesh_dim_size"])
    return {"groups": groups and groups.number, "tokens_per_group": groups and groups.size}


# Columns that are given -> what the other columns must be. Tables are told apart by their columns.
TABLES: dict[frozenset[str], Callable[[dict[str, Any]], dict[str, Any]]] = {
    frozenset({"n_tokens", "max_group_size", "experts", "capacity_factor", "min_expert_capacity"}): capacity_row,
    frozenset({"n_tokens", "max_group_size", "mesh_dim_size"}): group_row,
}


@runner("mesh_tf")
def compare_mesh_tf(folder: Path) -> Iterator[Case]:
    """Every case and table of a folder."""
    for case in read_cases(folder):
        yield case.name, compare_case(case)
    yield from compare_tables(folder, TABLES)
