"""The routers as one table: a row says what the rest of the program must know about a router without its mathematics.

How a router decides is in the file that its row names; which reference defines it, and in
which form, is `RouterRow.under`. `docs/extending.md` says how to add one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from conf.schema import MoeConfig, SecondPolicy, SemanticsName

Math = Literal["fp32", "activation"]
FALLBACK = "switch"  # the decoder's router where the encoder's looks ahead


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """A router as one of the references has it."""

    least: int = 1  # choices a token may try
    most: int | None = 1  # None: as many as there are experts
    gates: Literal["full", "renormalised"] = "full"  # renormalised: over the choices of a token, before dropping
    scores: Literal["over_experts", "over_tokens"] = "over_experts"  # softmax dim where experts choose
    jitter: bool = True  # False: reads its input as it is, in training too
    math: Math = "fp32"  # dtype of product and softmax
    aux: Literal["counted", "masked"] = "counted"  # masked: f and P leave padding out, their means still divide by all
    fields: Mapping[str, Any] = field(default_factory=dict)  # of `MoeConfig`, read by this form alone; value: unused


@dataclass(frozen=True, kw_only=True, slots=True)
class Matrix:
    """A weight `[d_model, num_experts]` of a router, fp32 in every run."""

    name: str
    init: Literal["fan_in", "zeros"] = "fan_in"


@dataclass(frozen=True, kw_only=True, slots=True)
class RouterRow:
    """What a router needs and promises."""

    module: str  # holds ROUTER, the `model.moe.routers.router.Router` that decides
    under: Mapping[SemanticsName, Form]  # the references that define it
    choices: int = 1  # experts a token may try unless `moe.top_k` says otherwise
    experts_per_token: int | None = None  # experts a token is at, at most; None: as many as it may try
    looks_ahead: bool = False  # slots go by score, so a later token can take an earlier one's
    experts_choose: bool = False  # each expert takes tokens; no slot for every token, however large the capacity
    matrices: tuple[Matrix, ...] = (Matrix(name="weight"),)
    state: tuple[str, ...] = ()  # fp32 vectors `[num_experts]` that start at 0 and no gradient reaches
    needs_ids: bool = False  # reads the ids of the tokens
    noise: tuple[str, ...] = ()  # names of its draws, besides the jitter of its input
    options: Callable[[MoeConfig], Any] | None = None  # makes `MoeRules.options`: settings no other router has


@dataclass(frozen=True, kw_only=True, slots=True)
class SecondChoices:
    """Options of top_2 in the form of Mesh-TensorFlow."""

    policy: SecondPolicy
    threshold: float
    loss_weight: float


def second_choices(moe: MoeConfig) -> SecondChoices:
    """What becomes of second choices."""
    return SecondChoices(policy=moe.second_policy, threshold=moe.second_threshold, loss_weight=moe.second_loss_weight)


ROUTERS: dict[str, RouterRow] = {
    "switch": RouterRow(
        module="model.moe.routers.tokens_choose",
        under={"mesh_tf": Form(), "flaxformer": Form(), "hf": Form(), "hf_4": Form(), "paper": Form()},
    ),
    "top_2": RouterRow(
        module="model.moe.routers.top_2",
        under={
            "mesh_tf": Form(
                least=2,
                most=2,
                gates="renormalised",
                jitter=False,
                aux="masked",
                fields={"second_policy": "all", "second_loss_weight": 0.0},
            ),
            "flaxformer": Form(least=2, most=None),
        },
        choices=2,
        noise=("router_second",),
        options=second_choices,
    ),
    "switch_max": RouterRow(
        module="model.moe.routers.switch_max",
        under={"mesh_tf": Form(), "flaxformer": Form(most=None)},
        looks_ahead=True,
    ),
    "expert_choice": RouterRow(
        module="model.moe.routers.experts_choose",
        under={"mesh_tf": Form(scores="over_tokens"), "flaxformer": Form()},
        experts_per_token=1,  # about what capacity factor 1 gives
        looks_ahead=True,
        experts_choose=True,
    ),
    "ntlb": RouterRow(
        module="model.moe.routers.ntlb",
        under={"mesh_tf": Form(most=None, math="activation")},
        choices=4,
        experts_per_token=1,
    ),
}


def routers_under(semantics: SemanticsName) -> tuple[str, ...]:
    """The routers that a reference defines."""
    return tuple(name for name, row in ROUTERS.items() if semantics in row.under)
