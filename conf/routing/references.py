"""The named semantics as one table of settings: what the reference codes do differently, one row each.

The rows say what each reference does, its defects included; `conf.routing.settings`, the only reader, joins a row with
the run's settings, which may mend them. What a reference does in one of its routers alone is at that router's row
(`conf.routing.routers`). `docs/routing.md` shows the table with the defects marked; its sources are the reference
codes, as run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from conf.schema import SemanticsName


@dataclass(frozen=True, kw_only=True, slots=True)
class Semantics:
    """One reference implementation of routing, its losses, its initial weights and its layer layout."""

    # Groups and capacity
    group_tokens: int  # tokens of a group at most; 0: each sequence is a group
    group_floor: Literal["one", "num_experts"]  # least number of groups in the global batch
    capacity: Literal["floor", "half_even", "absolute"]  # of S * factor / E; absolute: min_expert_capacity itself
    capacity_limit: Literal["group", "none"]  # group: at most S, before the minimum is applied
    capacity_minimum: Literal["setting", "one"]

    # Decisions
    padding: Literal["skipped", "routed"]  # skipped: no slot and gate 0; routed: padding is a token like any other
    decision: Literal["fp32", "activation"]  # dtype that probabilities are rounded to before the arg max
    kernel: Literal["fp32", "activation"]  # dtype that the router weight is rounded to before its fp32 product
    product: Literal["fp32", "activation"]  # dtype of the product and of noise on logits; the softmax is fp32
    combine: Literal["fp32", "activation"]  # dtype of the gate when it multiplies the expert's output
    mended_combine: Literal["fp32", "activation"]  # the same where defects are mended
    # exp(l - lse), exp(l - max) / sum, or torch's own, which rounds once: they differ in their last bits
    softmax: Literal["minus_logsumexp", "over_sum", "fused"]
    jitter: Literal["times_input", "plus_logits"]  # where U(1 - j, 1 + j) goes in training
    first_slot: int  # position of an expert's first token; 1 leaves slot 0 empty and one token less room
    zero_gate: Literal["dropped", "kept"]  # dropped: a choice with gate 0 loses its slot, which stays empty

    # Losses
    aux_scale: Literal["real_share", "one"]  # factor on E * sum f * P, whose means run over padding as well
    z_tokens: Literal["real", "all"]  # tokens over which the z-loss is a mean
    z_scale: Literal["aux_weight", "one"]  # factor on the z-loss's weight
    over_layers: Literal["sum", "mean", "joined"]  # joined: a stack's layers as one long layer, then the sum
    aux_counts: Literal["chosen", "kept"]  # what f counts; kept: after capacity, and a dropped token for expert 0
    all_sparse: Literal["counted", "silent"]  # silent: a stack with experts in every layer has router losses of 0
    jitter_reaches: Literal["router", "experts"]  # experts: in fp32 runs they receive the jittered input as well

    # Layers, initial weights, gradients
    layout: Literal["last_of_every", "second_of_every"]  # l % n == n - 1, or: l % n == 1 or n == 1
    router_std: float | None  # of a plain normal; None: the fan-in rule of every other weight
    truncation: Literal["raw", "corrected", "none"]  # at two sigma; raw: the spread is 0.88 of the stddev asked for
    expert_kernel: Literal["truncated", "normal"]
    head: Literal["fan_in", "embedding"]  # an output matrix of its own is drawn by fan-in, or as the embedding is
    init_scale: Literal["kernels", "all"]  # what model.init_scale scales; all: router, embedding and norms as well
    wo_fan: Literal["d_ff", "d_model"]  # fan-in of the experts' second weight
    expert_grad_scale: Literal["one", "num_experts"]  # factor on expert gradients before the update


SEMANTICS: dict[SemanticsName, Semantics] = {
    # Mesh-TensorFlow. Its mask multiplies P after the mean over tokens: padding counts in f and P, and the group's term
    # is scaled by its share of real tokens.
    "mesh_tf": Semantics(
        group_tokens=1024,
        group_floor="one",
        capacity="floor",
        capacity_limit="group",
        capacity_minimum="setting",
        padding="skipped",
        decision="fp32",
        kernel="activation",
        product="fp32",
        combine="activation",
        mended_combine="fp32",
        softmax="minus_logsumexp",
        jitter="times_input",
        first_slot=0,
        zero_gate="dropped",
        aux_scale="real_share",
        z_tokens="real",
        z_scale="aux_weight",  # added before the layer multiplies by the auxiliary weight
        over_layers="sum",
        aux_counts="chosen",
        all_sparse="counted",
        jitter_reaches="router",
        layout="last_of_every",
        router_std=None,
        truncation="raw",
        expert_kernel="truncated",
        head="fan_in",
        init_scale="kernels",
        wo_fan="d_ff",
        expert_grad_scale="one",
    ),
    # flaxformer with `ignore_padding_tokens=False`, its default; `moe.padding` selects its other two forms.
    "flaxformer": Semantics(
        group_tokens=8192,
        group_floor="num_experts",
        capacity="half_even",
        capacity_limit="none",
        capacity_minimum="setting",
        padding="routed",
        decision="fp32",
        kernel="fp32",
        product="fp32",
        combine="fp32",
        mended_combine="fp32",
        softmax="over_sum",
        jitter="times_input",
        first_slot=0,
        zero_gate="kept",
        aux_scale="one",
        z_tokens="all",
        z_scale="one",
        over_layers="mean",
        aux_counts="chosen",
        all_sparse="counted",
        jitter_reaches="router",
        layout="last_of_every",
        router_std=0.02,
        truncation="corrected",
        expert_kernel="normal",
        head="fan_in",
        init_scale="kernels",
        wo_fan="d_ff",
        expert_grad_scale="num_experts",
    ),
    # Hugging Face 5.23.0: probabilities are cast back to the input's dtype before the arg max.
    "hf": Semantics(
        group_tokens=0,
        group_floor="one",
        capacity="absolute",
        capacity_limit="none",
        capacity_minimum="setting",
        padding="routed",
        decision="activation",
        kernel="fp32",
        product="fp32",
        combine="activation",
        mended_combine="activation",
        softmax="fused",
        jitter="times_input",
        first_slot=0,
        zero_gate="kept",
        aux_scale="one",
        z_tokens="all",
        z_scale="one",
        over_layers="joined",
        aux_counts="chosen",
        all_sparse="silent",
        jitter_reaches="experts",  # the product is taken in place, on the experts' own input
        layout="second_of_every",
        router_std=1.0,
        truncation="none",
        expert_kernel="normal",
        head="embedding",
        init_scale="all",
        wo_fan="d_model",
        expert_grad_scale="one",
    ),
    # The listing in the paper's appendix F: jitter is added to logits; an inclusive count is compared with `less`.
    "paper": Semantics(
        group_tokens=1024,
        group_floor="one",
        capacity="floor",
        capacity_limit="none",
        capacity_minimum="one",
        padding="routed",
        decision="fp32",
        kernel="fp32",
        product="activation",
        combine="activation",
        mended_combine="activation",
        softmax="fused",
        jitter="plus_logits",
        first_slot=1,
        zero_gate="kept",
        aux_scale="one",
        z_tokens="all",
        z_scale="one",
        over_layers="sum",
        aux_counts="chosen",
        all_sparse="counted",
        jitter_reaches="router",
        layout="last_of_every",
        router_std=None,
        truncation="raw",
        expert_kernel="truncated",
        head="fan_in",
        init_scale="kernels",
        wo_fan="d_ff",
        expert_grad_scale="one",
    ),
}
# Transformers 4.57.6 takes f after capacity and counts each dropped token for expert 0.
SEMANTICS["hf_4"] = replace(SEMANTICS["hf"], aux_counts="kept")
