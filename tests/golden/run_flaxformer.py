"""Runs recordings of flaxformer's routers and of its whole layer against ours.

Shape suffixes: G groups, S tokens per group, D d_model, E experts, K slots per token, Q choices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from conf.derived.groups import expert_capacity
from conf.routing.settings import moe_rules
from conf.schema import MoeConfig, PaddingName
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
from tests.golden.grouping import flaxformer_groups, flaxformer_padding
from tests.golden.reader import GoldenCase, read_cases
from tests.model.moe.routers.call import route_tokens
from tests.model.t5.build import MOE

# Class of router -> what it does with padding when it ignores it.
PADDING: dict[str, PaddingName] = {
    "tokens_choose_masked": "ignored",
    "tokens_choose_scatter": "downweighted",
    "experts_choose_masked": "ignored",
}
COMMON = [
    "kind",
    "router",
    "k",
    "bpr",
    "ignore_padding_tokens",
    "use_bias",
    "router_dtype",
    "combine_dtype",
    "jitter_noise",
    "act",
    "special",
    "padding",
    "d_model",
    "experts",
    "data_seed",
]
OF_KIND = {
    "router": ["groups", "tokens_per_group", "capacity"],
    "layer": [
        "batch",
        "length",
        "d_ff",
        "max_group_size",
        "train_capacity_factor",
        "eval_capacity_factor",
        "min_expert_capacity",
        "train",
        "layer_dtype",
    ],
}
# As in run_mesh_tf: measured at most logits 3e-7, weights 6e-7, outputs 5e-7, losses 5e-7, gradients 4e-6.
FP32 = {"logits": 4e-6, "gate": 4e-6, "y": 4e-6, "loss": 2e-6, "grad_out": 1e-4, "grad_aux": 5e-5, "grad_z": 5e-5}
# bf16: routers' weights and products bit for bit; expert products in bf16 are summed in another order than ours.
BF16 = {"logits": 4e-3, "gate": 4e-3, "y": 2e-2, "loss": 5e-3, "grad_out": 2e-2, "grad_aux": 2e-2, "grad_z": 2e-2}
NARROW = 1e-2  # a metric that the reference rounds to bf16
NOISE = 1e-7  # gradients of a loss that are 0, as where every expert is chosen, were recorded as up to 5e-8


def check_known(case: GoldenCase) -> None:
    """Raise `Unsupported` for settings that are random or unknown."""
    config = case.config
    kind = require(case.name, "kind", config["kind"], OF_KIND)
    only_known(case.name, config, [*COMMON, *OF_KIND[kind]])
    require(case.name, "router", config["router"], PADDING)
    for field in ("act", "router_dtype", "combine_dtype"):
        require(case.name, field, config[field], DTYPES)
    if kind == "router" or config["train"]:
        require(case.name, "jitter_noise", config["jitter_noise"], [0.0])
    if kind == "layer":
        require(case.name, "layer_dtype", config["layer_dtype"], DTYPES)


def moe_of(config: dict[str, Any]) -> MoeConfig:
    """Our settings for a case: the reference to the letter, its defects included."""
    router = "expert_choice"
    if config["router"] != "experts_choose_masked":
        router = "switch_max" if config["bpr"] else "switch" if config["k"] == 1 else "top_2"
    return replace(
        MOE, semantics="flaxformer", router=router, top_k=config["k"], defects="reproduced",
        padding=PADDING[config["router"]] if config["ignore_padding_tokens"] else "semantics",
        num_experts=config["experts"], capacity_factor=config.get("train_capacity_factor", 1.0),
        eval_capacity_factor=config.get("eval_capacity_factor", 1.0),
        min_expert_capacity=config.get("min_expert_capacity", 1),
    )  # fmt: skip


class RouterBias:
    """The reference's optional bias, added after the product and rounded like it; ours has none, so it goes in here."""

    def __init__(self, bias_E: Tensor) -> None:
        self.bias_E = bias_E

    def logits(self, logits_GSE: Tensor) -> Tensor:
        return logits_GSE + self.bias_E.to(logits_GSE.dtype)

    def decided(self, routing: Routing) -> None:
        pass


class FlaxCase:
    """Our router on a case's tokens, with what is needed to compare it."""

    def __init__(self, case: GoldenCase) -> None:
        check_known(case)
        self.case, self.config, self.want = case, case.config, case.arrays()
        self.moe = moe_of(self.config)
        self.act = DTYPES[self.config["act"]]
        self.combine = DTYPES[self.config["combine_dtype"]]
        self.x = self.want["x"].to(self.act).requires_grad_()
        self.kernel = self.want["router_kernel"].clone().requires_grad_()

    def route(self, x_GSD: Tensor, capacity: int) -> None:
        """Route grouped tokens; padding is what is exactly zero."""
        self.G, self.S, _ = x_GSD.shape
        self.capacity = capacity
        self.real_GS = x_GSD.detach().abs().sum(-1) > 0
        rules = moe_rules(self.moe, "encoder")
        if self.config["router_dtype"] == "bfloat16":
            rules = replace(rules, rounding=replace(rules.rounding, softmax="activation", product="activation"))
            x_GSD = x_GSD.bfloat16()
        tap = RouterBias(self.want["router_bias"]) if self.config["use_bias"] else None
        self.routing: Routing = route_tokens(x_GSD, self.real_GS, self.kernel, rules=rules, capacity=capacity, tap=tap)
        self.gates_GSK = self.routing.gates_GSK.to(self.combine)
        self.coo = coo(self.routing, self.gates_GSK)
        self.aux = self.routing.aux_loss / self.G
        self.z = self.routing.z_sum / (self.G * self.S)

    @property
    def limits(self) -> dict[str, float]:
        """Tolerances by kind of array."""
        types = [self.config[name] for name in ("act", "router_dtype", "combine_dtype", "layer_dtype")
                 if name in self.config]  # fmt: skip
        if all(name == "float32" for name in types):
            return FP32
        exact_logits = self.config["router_dtype"] == "float32"  # bf16 inputs, but the products are fp32
        return BF16 | ({"logits": FP32["logits"], "loss": FP32["loss"]} if exact_logits else {})

    def noise(self, name: str) -> float:
        """The rounding error of a gradient: a router's terms cancel where p is near 0 or 1, or f is uniform."""
        if name != "grad_out_router":
            return NOISE if name.startswith("grad_") else 0.0
        terms_BL = (self.want["y"] * self.want["cotangent"]).abs().sum(-1)
        return 2 * NOISE * max(1.0, float(terms_BL.max() * self.x.detach().abs().max()))

    def arrays(self) -> Iterator[tuple[str, Tensor, str]]:
        """Name, ours and the kind of tolerance of arrays that both kinds of cases have."""
        pairs = torch.stack((self.routing.choices_GSQ, self.routing.places_GSQ), -1)
        yield "coo_index", self.coo.index_n4, "exact"
        yield "dispatch_indices", pairs, "exact"
        yield "coo_weight", self.coo.weight_n, "gate"
        yield "combine_weights", self.gates_GSK, "gate"
        yield "logits", self.routing.logits_GSE, "logits"


def of_router(case: GoldenCase) -> tuple[FlaxCase, dict[str, Any], dict[str, tuple[Tensor, str]]]:
    """A router alone: scalars and arrays."""
    ours = FlaxCase(case)
    ours.route(ours.x, ours.config["capacity"])
    scalars = {"aux_loss": ours.aux, "z_loss": ours.z, "n_dispatched": len(ours.coo.index_n4)}
    scalars["combine_dtype"] = dtype_name(ours.combine)
    arrays = {name: (value, kind) for name, value, kind in ours.arrays()}
    for name, loss in (("aux", ours.aux), ("z", ours.z)):
        grads = grads_of(loss, (ours.kernel, ours.x))
        arrays |= {f"grad_{name}_kernel": (grads[0], f"grad_{name}"), f"grad_{name}_x": (grads[1], f"grad_{name}")}
    return ours, scalars, arrays


def of_layer(case: GoldenCase) -> tuple[FlaxCase, dict[str, Any], dict[str, tuple[Tensor, str]]]:
    """The whole layer: it pads, groups, routes, runs the experts and combines."""
    ours = FlaxCase(case)
    config, (batch, length, _) = ours.config, ours.x.shape
    rows, columns = flaxformer_padding(batch, length, config["experts"])
    x_BLD = F.pad(ours.x, (0, 0, 0, columns - length, 0, rows - batch))
    groups = flaxformer_groups(rows * columns, config["max_group_size"], config["experts"])
    if groups is None:
        raise Unsupported(f"{case.name}: the reference has no groups for {rows * columns} tokens")
    x_GSD = x_BLD.reshape(*groups, -1)
    ours.route(x_GSD, expert_capacity(ours.moe, groups.size, train=config["train"]))
    experts = expert_bank(ours.moe, ours.want["wi"], ours.want["wo"], DTYPES[config["layer_dtype"]])
    y_GSD = run_experts(x_GSD, ours.routing, ours.gates_GSK, experts, torch.promote_types(ours.act, ours.combine))
    y = y_GSD.view(rows, columns, -1)[:batch, :length]
    scalars: dict[str, Any] = {
        "groups": ours.G, "tokens_per_group": ours.S, "capacity": ours.capacity,
        "padding_tokens_added_by_layer": rows * columns - batch * length, "y_dtype": dtype_name(y.dtype),
        "n_dispatched": len(ours.coo.index_n4), "auxiliary_loss": ours.aux, "router_z_loss": ours.z,
    }  # fmt: skip
    arrays = {name: (value, kind) for name, value, kind in ours.arrays()} | {"y": (y, "y")}
    if "cotangent" in ours.want:
        inputs = (ours.x, ours.kernel, experts.wi, experts.wo)
        grads = grads_of((y * ours.want["cotangent"]).sum(), inputs)
        names = ("grad_out_x", "grad_out_router", "grad_out_wi", "grad_out_wo")
        arrays |= {name: (grad, "grad_out") for name, grad in zip(names, grads, strict=True)}
    return ours, scalars | layer_metrics(ours), arrays


def layer_metrics(ours: FlaxCase) -> dict[str, Tensor]:
    """What the reference's layer reports about its dispatch, its count of scattered real tokens included.

    Counts of real tokens and sums of combine weights have the dtype of what is counted, so quotients have it too.
    """
    config, rows = ours.config, torch.tensor(len(ours.coo.index_n4))
    somewhere = torch.tensor(len({(g, s) for g, s, _, _ in ours.coo.index_n4.tolist()}))
    tokens = torch.tensor(float(ours.G * ours.S))
    if config["ignore_padding_tokens"]:
        copies = config["k"] if config["router"] == "tokens_choose_scatter" else 1
        tokens = (ours.real_GS.sum() * copies).to(ours.act)
    weight = ours.gates_GSK.float().sum().to(ours.combine)
    slots = config["experts"] * ours.capacity * ours.G
    return {  # quotients of integers and bf16 numbers are rounded once, to bf16
        "fraction_tokens_left_behind": 1 - (somewhere / tokens.float()).to(tokens.dtype),
        "router_confidence": (weight.float() / rows).to(weight.dtype),
        "expert_usage": rows / slots,
    }


INPUTS = ("x", "router_kernel", "router_bias", "wi", "wo", "cotangent")
RUN = {"router": of_router, "layer": of_layer}


def compare_case(case: GoldenCase) -> Iterator[Comparison]:
    """Every scalar and array of one case."""
    ours, scalars, arrays = RUN[require(case.name, "kind", case.config.get("kind"), RUN)](case)
    for name, recorded in case.scalars.items():
        if name not in scalars:
            yield unknown("scalar", name)
            continue
        value = scalars[name]
        if isinstance(recorded, int | str):
            yield exact(name, value, recorded)
        elif math.isinf(recorded):  # real tokens left behind of none
            yield exact(name, float(value), recorded)
        else:
            narrow = isinstance(value, Tensor) and value.dtype == torch.bfloat16
            yield scalar(name, value, recorded, NARROW if narrow else ours.limits["loss"])
    for name, recorded in ours.want.items():
        if name in INPUTS:
            continue
        if name not in arrays:
            yield unknown("array", name)
            continue
        value, kind = arrays[name]
        noise = ours.noise(name)
        limit = 0.0 if kind == "exact" else ours.limits[kind]
        yield close(name, value, recorded, limit, noise=noise) if limit else exact(name, value, recorded)


def capacity_row(row: dict[str, Any]) -> dict[str, Any]:
    """Groups and capacity of one batch of `n_tokens` in a single sequence."""
    batch, length = flaxformer_padding(1, row["n_tokens"], row["experts"])
    groups = flaxformer_groups(batch * length, row["max_group_size"], row["experts"])
    assert groups is not None, "a padded batch has groups"
    moe = replace(
        MOE, semantics="flaxformer", num_experts=row["experts"], capacity_factor=row["capacity_factor"],
        min_expert_capacity=row["min_expert_capacity"],
    )  # fmt: skip
    capacity = expert_capacity(moe, groups.size, train=True)
    return {"groups": groups.number, "tokens_per_group": groups.size, "capacity": capacity}


def group_row(row: dict[str, Any]) -> dict[str, Any]:
    """Number of groups, None where the reference refuses."""
    groups = flaxformer_groups(row["n_tokens"], row["max_group_size"], row["experts"], row["expert_replicas"])
    return {"groups": groups and groups.number}


def padding_row(row: dict[str, Any]) -> dict[str, Any]:
    """Shape after padding."""
    batch, length = flaxformer_padding(row["batch"], row["length"], row["experts"] * row["expert_replicas"])
    return {"padded_batch": batch, "padded_length": length}


# Columns that are given -> what the other columns must be.
TABLES: dict[frozenset[str], Callable[[dict[str, Any]], dict[str, Any]]] = {
    frozenset({"n_tokens", "max_group_size", "experts", "capacity_factor", "min_expert_capacity"}): capacity_row,
    frozenset({"n_tokens", "max_group_size", "experts", "expert_replicas"}): group_row,
    frozenset({"batch", "length", "experts", "expert_replicas"}): padding_row,
}


@runner("flaxformer")
def compare_flaxformer(folder: Path) -> Iterator[Case]:
    """Every case and table of a folder."""
    for case in read_cases(folder):
        yield case.name, compare_case(case)
    yield from compare_tables(folder, TABLES)
