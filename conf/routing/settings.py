"""The rules of a stack's expert layers: a reference's row joined with what the run asks for and mends.

`moe_rules` makes the one object that the model reads in place of a configuration, and this file alone reads the table
of the references. What may be asked for is checked in `conf.routing.legal`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from conf.routing.references import SEMANTICS
from conf.routing.routers import FALLBACK, ROUTERS, Form, Math, RouterRow
from conf.schema import MoeConfig, RawMoeConfig, Stack

Counted = Literal["all", "real"]
Join = Literal["sum", "mean", "stack_mean", "joined"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rounding:
    """Where a router rounds; "activation" is the dtype of the layer's input, "fp32" stays fp64 in an fp64 model."""

    kernel: Math  # of the weight before the product
    product: Math  # of the product and of noise on logits
    softmax: Math
    form: Literal["minus_logsumexp", "over_sum", "fused"]  # of the softmax: their last bits differ
    decision: Math  # of the probabilities before the choice
    combine: Math  # of the gate when it multiplies the expert's output


@dataclass(frozen=True, kw_only=True, slots=True)
class JitterRule:
    """U(1 - width, 1 + width) on the router's input or its logits, in training."""

    place: Literal["none", "times_input", "plus_logits"]
    width: float
    reaches_experts: bool  # they receive the jittered input where activations are fp32 or wider


@dataclass(frozen=True, kw_only=True, slots=True)
class CapacityRule:
    """How many slots an expert has for a group of tokens."""

    rounding: Literal["floor", "half_even", "absolute"]  # absolute: `minimum` itself, whatever the tokens
    at_most_group: bool
    minimum: int
    factor: float  # in training
    eval_factor: float
    num_experts: int

    def slots(self, tokens: int, *, train: bool) -> int:
        """Slots of one expert for a group of `tokens` tokens."""
        if self.rounding == "absolute":
            return self.minimum
        share = tokens * (self.factor if train else self.eval_factor) / self.num_experts
        slots = round(share) if self.rounding == "half_even" else int(share)
        return max(min(slots, tokens) if self.at_most_group else slots, self.minimum)


@dataclass(frozen=True, kw_only=True, slots=True)
class AuxRule:
    """Which tokens count in the balancing loss E * sum_e f * P of a group."""

    f: Counted
    P: Counted
    mean: Counted  # tokens that the means divide by
    scale: Literal["real_share", "one"]  # factor on the group's loss


@dataclass(frozen=True, kw_only=True, slots=True)
class LossRules:
    """How the losses of layers enter the loss of the step."""

    aux_weight: float
    z_weight: float
    z_tokens: Literal["real", "all", "zeroed"]  # tokens of the z-loss; zeroed: all, but padding with logits 0
    join: Join  # over layers; stack_mean: mean of a stack, then the sum; joined: a stack's layers as one long layer
    after_capacity: bool  # f of the joined loss counts kept tokens, a dropped one for expert 0
    silent: bool  # the stack's router losses are the constant 0

    @property
    def z_divisor(self) -> Counted:
        """Tokens that the z-loss is a mean over."""
        return "real" if self.z_tokens == "real" else "all"


@dataclass(frozen=True, kw_only=True, slots=True)
class InitRules:
    """What a reference draws its initial weights from; the fields are those of the table."""

    router_std: float | None
    truncation: Literal["raw", "corrected", "none"]
    expert_kernel: Literal["truncated", "normal"]
    head: Literal["fan_in", "embedding"]
    scaled: Literal["kernels", "all"]
    wo_fan: Literal["d_ff", "d_model"]


@dataclass(frozen=True, kw_only=True, slots=True)
class MoeRules:
    """Everything the expert layers of one stack need to know besides their sizes."""

    router: str
    row: RouterRow
    num_experts: int
    choices: int  # experts a token may try, most probable first
    routed: Literal["real", "all", "zeroed"]  # tokens that ask for slots; zeroed: all, but padding with score 0
    gates: Literal["full", "renormalised"]
    scores: Literal["over_experts", "over_tokens"]
    first_slot: int  # position of an expert's first token
    zero_gate: Literal["dropped", "kept"]  # dropped: a choice with gate 0 loses its slot, which stays empty
    options: Any  # what `RouterRow.options` makes, None without
    rounding: Rounding
    jitter: JitterRule
    dropless: bool  # every choice finds a place; `capacity` is not asked
    capacity: CapacityRule
    aux: AuxRule
    losses: LossRules
    init: InitRules
    group_sequences: int | None  # None, of a layer alone: all sequences of a call are one group
    expert_dropout: float
    expert_gradient_factor: int  # on the gradients of experts before the update

    def slots(self, tokens: int, *, train: bool) -> int:
        """Slots of one expert for a group of `tokens` tokens; dropless, so many that no choice finds none."""
        return tokens + self.first_slot if self.dropless else self.capacity.slots(tokens, train=train)


def stack_router(moe: MoeConfig, stack: Stack) -> str:
    """The router of a stack's expert layers."""
    if stack == "encoder":
        return moe.router
    if moe.decoder_router is not None:
        return moe.decoder_router
    return FALLBACK if ROUTERS[moe.router].looks_ahead else moe.router


def experts_per_token(moe: MoeConfig, stack: Stack) -> int:
    """Experts that a token is at, at most."""
    router = stack_router(moe, stack)
    return ROUTERS[router].experts_per_token or _choices(moe, router)


def router_matrices(moe: MoeConfig, stack: Stack) -> int:
    """Weights `[d_model, num_experts]` of one router."""
    return len(ROUTERS[stack_router(moe, stack)].matrices)


def _choices(moe: MoeConfig, router: str) -> int:
    if moe.top_k is not None and router == moe.router:
        return moe.top_k
    return min(ROUTERS[router].choices, moe.num_experts)


@cache
def moe_rules(moe: MoeConfig, stack: Stack) -> MoeRules:
    """The rules of one stack."""
    reference, router = SEMANTICS[moe.semantics], stack_router(moe, stack)
    row = ROUTERS[router]
    form = row.under[moe.semantics]
    routed = _routed(moe, row)
    return MoeRules(
        router=router,
        row=row,
        num_experts=moe.num_experts,
        choices=_choices(moe, router),
        routed=routed,
        gates=form.gates,
        scores=form.scores,
        first_slot=reference.first_slot,
        zero_gate=reference.zero_gate,
        options=row.options(moe) if row.options is not None else None,
        rounding=_rounding(moe, form),
        jitter=JitterRule(
            place=reference.jitter if form.jitter else "none",
            width=moe.jitter,
            reaches_experts=moe.defects == "reproduced" and reference.jitter_reaches == "experts",
        ),
        dropless=moe.capacity == "dropless",
        capacity=capacity_rule(moe),
        aux=_aux_rule(moe, form, routed),
        losses=_loss_rules(moe, stack),
        init=init_rules(moe),
        group_sequences=moe.group_sequences,
        expert_dropout=moe.expert_dropout,
        # flaxformer's trainer multiplies by its partitions
        expert_gradient_factor=moe.num_experts
        if moe.defects == "reproduced" and reference.expert_grad_scale == "num_experts"
        else 1,
    )


def _routed(moe: MoeConfig, row: RouterRow) -> Literal["real", "all", "zeroed"]:
    mended = moe.defects == "mended"
    routed = "real" if SEMANTICS[moe.semantics].padding == "skipped" else "all"
    if moe.padding != "semantics":
        routed = "zeroed" if moe.padding == "downweighted" and not mended else "real"
    if routed == "real" and row.experts_choose and not mended:
        return "zeroed"  # experts may take padding when real tokens run out
    return routed


def _rounding(moe: MoeConfig, form: Form) -> Rounding:
    reference, mended = SEMANTICS[moe.semantics], moe.defects == "mended"
    narrow = moe.router_precision == "activation"
    softmax: Math = "activation" if narrow or (form.math == "activation" and not mended) else "fp32"
    return Rounding(
        kernel="fp32" if mended else reference.kernel,
        product=softmax if mended or softmax == "activation" else reference.product,
        softmax=softmax,
        form=reference.softmax,
        decision=reference.decision,
        combine=reference.mended_combine if mended and not narrow else reference.combine,
    )


def _aux_rule(moe: MoeConfig, form: Form, routed: str) -> AuxRule:
    """Mended, f and P are over real tokens alone; a group still weighs as much as its share of real tokens."""
    if moe.defects == "mended" and routed == "real":
        return AuxRule(f="real", P="real", mean="real", scale="real_share")
    masked = routed == "real" and (moe.padding != "semantics" or form.aux == "masked")
    return AuxRule(
        f="real" if masked else "all",
        P="real" if masked or routed == "zeroed" else "all",
        mean="all",
        scale="one" if masked else SEMANTICS[moe.semantics].aux_scale,
    )


def _loss_rules(moe: MoeConfig, stack: Stack) -> LossRules:
    reference, mended = SEMANTICS[moe.semantics], moe.defects == "mended"
    z_tokens = reference.z_tokens
    if moe.padding != "semantics":
        z_tokens = "real" if mended else "zeroed"
    every = moe.sparse_every if stack == "encoder" else moe.decoder_sparse_every
    return LossRules(
        aux_weight=moe.aux_loss_weight,
        z_weight=moe.z_loss_weight * (moe.aux_loss_weight if reference.z_scale == "aux_weight" else 1.0),
        z_tokens=z_tokens,
        join="stack_mean" if reference.over_layers == "joined" and mended else reference.over_layers,
        after_capacity=not mended and reference.aux_counts == "kept",
        silent=not mended and reference.all_sparse == "silent" and every == 1,
    )


def capacity_rule(moe: MoeConfig) -> CapacityRule:
    """Slots of one expert, by the rounding and the bounds of the reference."""
    reference = SEMANTICS[moe.semantics]
    return CapacityRule(
        rounding=reference.capacity,
        at_most_group=reference.capacity_limit == "group",
        minimum=moe.min_expert_capacity if reference.capacity_minimum == "setting" else 1,
        factor=moe.capacity_factor,
        eval_factor=moe.eval_capacity_factor,
        num_experts=moe.num_experts,
    )


def init_rules(moe: MoeConfig) -> InitRules:
    """What initial weights are drawn from; the same for both stacks and the rest of the model."""
    reference = SEMANTICS[moe.semantics]
    return InitRules(
        router_std=reference.router_std,
        truncation=reference.truncation,
        expert_kernel=reference.expert_kernel,
        head=reference.head,
        scaled=reference.init_scale,
        wo_fan=reference.wo_fan,
    )


def sparse_place(moe: MoeConfig, every: int) -> int:
    """Which of every `every` layers holds experts, from 0."""
    return every - 1 if SEMANTICS[moe.semantics].layout == "last_of_every" else min(1, every - 1)


def most_group_sequences(moe: RawMoeConfig, *, length: int, batch: int) -> int:
    """Sequences of `length` tokens that a group may hold by the rule of the reference, in a global batch of `batch`.

    0 where not even one fits, as for Hugging Face, which routes each sequence alone.
    """
    reference = SEMANTICS[moe.semantics]
    most = reference.group_tokens // length
    return min(most, batch // moe.num_experts) if reference.group_floor == "num_experts" else most


def padding_of(moe: RawMoeConfig) -> Literal["skipped", "routed"]:
    """What the reference does with padding unless `moe.padding` says otherwise."""
    return SEMANTICS[moe.semantics].padding
