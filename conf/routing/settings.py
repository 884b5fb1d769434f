"""What one router does, as settings: a row of the semantics' table joined with what the run asks for and mends.

The model reads `RouterSettings` and nothing else of the configuration when it routes. Which pairs of semantics and
router exist is data as well; the checks here say what is legal and why.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from conf.errors import ConfigError
from conf.routing.references import SEMANTICS
from conf.schema import MoeConfig, RawMoeConfig, RouterName, SecondPolicy, Stack

Math = Literal["fp32", "activation"]

USUAL_CHOICES: dict[RouterName, int] = {"switch": 1, "top_2": 2, "switch_max": 1, "expert_choice": 1, "ntlb": 4}
LOOKS_AHEAD: tuple[RouterName, ...] = ("expert_choice", "switch_max")


@dataclass(frozen=True, kw_only=True, slots=True)
class RouterSettings:
    """Everything that `model.moe.routers.router.route` needs to know besides capacity and tensors."""

    router: RouterName
    choices: int  # experts a token may try, most probable first
    padding: Literal["skipped", "routed", "zeroed"]  # zeroed: score 0, last choice; takes slots
    math: Math  # dtype of the softmax
    product: Math  # dtype of the product and of noise on logits
    kernel: Math  # dtype the weight is rounded to before the product
    decision: Math  # dtype the probabilities are rounded to before the choice
    combine: Math  # dtype of the gate when it multiplies the expert's output
    softmax: Literal["minus_logsumexp", "over_sum", "fused"]
    jitter: Literal["none", "times_input", "plus_logits"]
    first_slot: int
    gates: Literal["full", "renormalised"]
    order: Literal["token", "gate"]  # who queues first for slots: earlier tokens, or higher first gates
    zero_gate: Literal["dropped", "kept"]
    expert_softmax: Literal["over_tokens", "over_experts"]
    second_policy: SecondPolicy
    second_threshold: float
    second_loss_weight: float
    aux_choices: Literal["first", "sum", "mean", "none"]  # which choices f counts
    aux_f: Literal["all", "real"]  # tokens that count in f
    aux_p: Literal["all", "real"]  # tokens that count in P
    aux_mean: Literal["all", "real"]  # tokens the means divide by
    aux_scale: Literal["real_share", "one"]
    z_tokens: Literal["real", "all", "zeroed"]  # zeroed: all, padding with logits 0


def stack_router(moe: MoeConfig, stack: Stack) -> RouterName:
    """The router of a stack's expert layers."""
    if stack == "encoder":
        return moe.router
    if moe.decoder_router is not None:
        return moe.decoder_router
    return "switch" if moe.router in LOOKS_AHEAD else moe.router


def num_choices(moe: MoeConfig, router: RouterName) -> int:
    """Experts that a token may try."""
    usual = min(USUAL_CHOICES[router], moe.num_experts)
    return moe.top_k if moe.top_k is not None and router == moe.router else usual


def experts_per_token(moe: MoeConfig, stack: Stack) -> int:
    """Experts that a token is at, at most; where experts choose tokens, 1: about what capacity factor 1 gives."""
    router = stack_router(moe, stack)
    return 1 if router in ("ntlb", "expert_choice") else num_choices(moe, router)


def router_settings(moe: MoeConfig, stack: Stack) -> RouterSettings:
    """Settings of the routers of one stack."""
    row, router, mended = SEMANTICS[moe.semantics], stack_router(moe, stack), moe.defects == "mended"
    choices = num_choices(moe, router)
    padding = row.padding
    if moe.padding != "semantics":
        padding = "zeroed" if moe.padding == "downweighted" and not mended else "skipped"
    if router == "expert_choice" and padding == "skipped" and not mended:
        padding = "zeroed"  # experts may take padding when real tokens run out
    per_token_choice = row.top_k_gates == "full"
    aux_choices = "first" if router in ("switch", "switch_max") and choices == 1 else "sum"
    if router == "ntlb":
        aux_choices = "mean"
    elif router == "top_2" and not per_token_choice:
        aux_choices = "first"
    elif router == "expert_choice" and row.expert_choice == "over_experts":
        aux_choices = "none"
    masked = padding == "skipped" and (moe.padding != "semantics" or (router == "top_2" and row.top_2_aux == "masked"))
    narrow = moe.router_precision == "activation"
    math: Math = "fp32"
    if narrow or (router == "ntlb" and row.ntlb_math == "activation" and not mended):
        math = "activation"
    settings = RouterSettings(
        router=router,
        choices=choices,
        padding=padding,
        math=math,
        product=math if mended or math == "activation" else row.product,
        kernel="fp32" if mended else row.kernel,
        decision=row.decision,
        combine="fp32" if not narrow and mended and row.loss == "activation" else row.combine,
        softmax=row.softmax,
        jitter="none" if router in row.unjittered else row.jitter,
        first_slot=row.first_slot,
        gates="full" if per_token_choice or router != "top_2" else "renormalised",
        order="gate" if router == "switch_max" else "token",
        zero_gate=row.zero_gate,
        expert_softmax=row.expert_choice,
        second_policy=moe.second_policy,
        second_threshold=moe.second_threshold,
        second_loss_weight=moe.second_loss_weight,
        aux_choices=aux_choices,
        aux_f="real" if masked else "all",
        aux_p="real" if masked or padding == "zeroed" else "all",
        aux_mean="all",
        aux_scale="one" if masked else row.aux_scale,
        z_tokens=_z_tokens(moe),
    )
    return _mended_aux(settings) if mended and padding == "skipped" else settings


def _mended_aux(settings: RouterSettings) -> RouterSettings:
    """f and P over real tokens alone; a group still weighs as much as its share of real tokens."""
    return replace(settings, aux_f="real", aux_p="real", aux_mean="real", aux_scale="real_share")


def _z_tokens(moe: MoeConfig) -> Literal["real", "all", "zeroed"]:
    if moe.padding != "semantics":
        return "real" if moe.defects == "mended" else "zeroed"
    return SEMANTICS[moe.semantics].z_tokens


def over_layers(moe: MoeConfig) -> Literal["sum", "mean", "stack_mean", "joined"]:
    """How the losses of layers join; stack_mean: mean per stack, then the sum. The mended form of "joined" is that."""
    name = SEMANTICS[moe.semantics].over_layers
    return "stack_mean" if name == "joined" and moe.defects == "mended" else name


def counts_kept(moe: MoeConfig) -> bool:
    """Whether f of the joined loss counts tokens after capacity, dropped ones for expert 0."""
    return moe.defects == "reproduced" and SEMANTICS[moe.semantics].aux_counts == "kept"


def is_silent(moe: MoeConfig, stack: Stack) -> bool:
    """Whether a stack's router losses are the constant 0 because every layer of it has experts."""
    every = moe.decoder_sparse_every if stack == "decoder" else moe.sparse_every
    return moe.defects == "reproduced" and SEMANTICS[moe.semantics].all_sparse == "silent" and every == 1


def jitter_reaches_experts(moe: MoeConfig) -> bool:
    """Whether experts receive the jittered input where activations are fp32 (or wider)."""
    return moe.defects == "reproduced" and SEMANTICS[moe.semantics].jitter_reaches == "experts"


def z_divisor(moe: MoeConfig) -> Literal["real", "all"]:
    """Tokens that the z-loss is a mean over."""
    return "real" if _z_tokens(moe) == "real" else "all"


def expert_gradient_factor(moe: MoeConfig) -> int:
    """Factor on the gradients of experts before the update: flaxformer's trainer multiplies by its partitions."""
    if moe.defects == "mended" or SEMANTICS[moe.semantics].expert_grad_scale == "one":
        return 1
    return moe.num_experts


def check_router(moe: RawMoeConfig) -> Iterator[ConfigError]:
    """The semantics defines the routers, and their settings are within what they can do."""
    legal = SEMANTICS[moe.semantics].routers
    for field, router in (("router", moe.router), ("decoder_router", moe.decoder_router)):
        if router is not None and router not in legal:
            others = [name for name, row in SEMANTICS.items() if router in row.routers]
            yield ConfigError(
                f"moe.{field}",
                got=router,
                needs=f"a router that moe.semantics={moe.semantics} defines: {', '.join(legal)}",
                hint=f"moe.{field}={legal[0]}, or moe={' or moe='.join(others)}",
            )
    if moe.decoder_router == "expert_choice":
        yield ConfigError(
            "moe.decoder_router",
            got="expert_choice",
            needs="a router whose choices do not depend on later tokens: experts would choose among the tokens of the "
            "whole target, which the decoder is to predict",
            hint="moe.decoder_router=switch",
        )
    yield from _check_choices(moe)
    if moe.padding != "semantics" and moe.semantics != "flaxformer":
        yield ConfigError(
            "moe.padding",
            got=moe.padding,
            needs=f"semantics: only flaxformer has several forms; under {moe.semantics} padding is "
            f"{SEMANTICS[moe.semantics].padding}",
            hint="moe.padding=semantics, or moe=flaxformer",
        )
    if moe.second_threshold <= 0:
        yield ConfigError(
            "moe.second_threshold", got=moe.second_threshold, needs="a number above 0", hint="moe.second_threshold=0.2"
        )
    if moe.second_loss_weight < 0:
        yield ConfigError("moe.second_loss_weight", got=moe.second_loss_weight, needs="at least 0", hint="0.5")
    plain = moe.second_policy == "all" and moe.second_loss_weight == 0
    if not plain and (moe.router != "top_2" or moe.semantics != "mesh_tf"):
        field = "second_policy" if moe.second_policy != "all" else "second_loss_weight"
        yield ConfigError(
            f"moe.{field}",
            got=getattr(moe, field),
            needs="moe.router=top_2 under moe.semantics=mesh_tf, the only one that has second choices to judge",
            hint=f"moe.{field}={'all' if field == 'second_policy' else 0}",
        )


def _check_choices(moe: RawMoeConfig) -> Iterator[ConfigError]:
    """`top_k` is a number of choices that the router can make."""
    if moe.top_k is None:
        if moe.router == "top_2" and moe.num_experts < 2:
            yield ConfigError("moe.num_experts", got=moe.num_experts, needs="at least 2 for top_2", hint="8")
        return
    most = {"switch": 1, "top_2": 2, "expert_choice": 1}.get(moe.router, moe.num_experts)
    if moe.router == "switch_max" and moe.semantics == "mesh_tf":
        most = 1
    if moe.router == "top_2" and moe.semantics == "flaxformer":
        most = moe.num_experts  # its router takes any number of choices
    least = 2 if moe.router == "top_2" else 1
    if not least <= moe.top_k <= min(most, max(moe.num_experts, least)):
        span = f"{least}" if least == most else f"{least} to {most}"
        yield ConfigError(
            "moe.top_k",
            got=moe.top_k,
            needs=f"{span} with moe.router={moe.router} under {moe.semantics} and {moe.num_experts} experts",
            hint="moe.top_k=null, which is the router's own number",
        )
