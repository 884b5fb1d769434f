"""What may be asked of routers: one table of rules, each with what to print when it is broken."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

from conf.errors import ConfigError
from conf.routing.routers import ROUTERS, Form, routers_under
from conf.routing.settings import padding_of
from conf.schema import RawMoeConfig


class Rule(NamedTuple):
    """A field, when it holds, and the two halves of the message when it does not."""

    field: str
    holds: Callable[[RawMoeConfig], bool]
    needs: Callable[[RawMoeConfig], str]
    hint: Callable[[RawMoeConfig], str]


def check_router(moe: RawMoeConfig) -> Iterator[ConfigError]:
    """Every rule of the table that the configuration breaks."""
    owned = {name: off for row in ROUTERS.values() for form in row.under.values() for name, off in form.fields.items()}
    for rule in (*RULES, *(_own(name, off) for name, off in owned.items())):
        if not rule.holds(moe):
            yield ConfigError(
                f"moe.{rule.field}", got=getattr(moe, rule.field), needs=rule.needs(moe), hint=rule.hint(moe)
            )


def _defined(field: Literal["router", "decoder_router"]) -> Rule:
    """The reference has the router."""

    def name(moe: RawMoeConfig) -> str:
        value = getattr(moe, field)
        return moe.router if value is None else value

    def hint(moe: RawMoeConfig) -> str:
        legal = routers_under(moe.semantics)
        if name(moe) in ROUTERS:
            return f"moe.{field}={legal[0]}, or moe={' or moe='.join(ROUTERS[name(moe)].under)}"
        return f"moe.{field}={(difflib.get_close_matches(name(moe), legal, n=1, cutoff=0.4) or legal)[0]}"

    return Rule(
        field,
        lambda moe: getattr(moe, field) is None or name(moe) in routers_under(moe.semantics),
        lambda moe: f"a router that moe.semantics={moe.semantics} defines: {', '.join(routers_under(moe.semantics))}",
        hint,
    )


def _form(moe: RawMoeConfig) -> Form | None:
    """The router as the reference has it; None: not at all, which is another rule's matter."""
    row = ROUTERS.get(moe.router)
    return None if row is None else row.under.get(moe.semantics)


def _choices(moe: RawMoeConfig) -> tuple[int, int]:
    """Fewest and most choices of a token."""
    form = _form(moe)
    assert form is not None
    return form.least, max(form.least, moe.num_experts if form.most is None else min(form.most, moe.num_experts))


def _span(moe: RawMoeConfig) -> str:
    least, most = _choices(moe)
    number = f"{least}" if least == most else f"{least} to {most}"
    return f"{number} with moe.router={moe.router} under {moe.semantics} and {moe.num_experts} experts"


def _own(field: str, off: Any) -> Rule:
    """A field that one router reads stays as it is with the others."""
    owners = [(n, semantics) for n, row in ROUTERS.items() for semantics, f in row.under.items() if field in f.fields]
    where = " or ".join(f"moe.router={router} under moe.semantics={semantics}" for router, semantics in owners)
    return Rule(
        field,
        lambda moe: getattr(moe, field) == off or (moe.router, moe.semantics) in owners,
        lambda moe: f"{where}, which alone reads it",
        lambda moe: f"moe.{field}={off}",
    )


RULES = (
    _defined("router"),
    _defined("decoder_router"),
    Rule(
        "decoder_router",
        lambda moe: moe.decoder_router not in ROUTERS or not ROUTERS[moe.decoder_router].experts_choose,
        lambda moe: (
            "a router whose choices do not depend on later tokens: experts would choose among the tokens of the "
            "whole target, which the decoder is to predict"
        ),
        lambda moe: "moe.decoder_router=switch",
    ),
    Rule(
        "num_experts",
        # fewer than one is no matter of the router
        lambda moe: moe.top_k is not None or (form := _form(moe)) is None or form.least <= max(moe.num_experts, 1),
        lambda moe: f"at least {_choices(moe)[0]} for {moe.router}",
        lambda moe: "8",
    ),
    Rule(
        "top_k",
        lambda moe: moe.top_k is None or _form(moe) is None or _choices(moe)[0] <= moe.top_k <= _choices(moe)[1],
        _span,
        lambda moe: "moe.top_k=null, which is the router's own number",
    ),
    Rule(
        "padding",
        lambda moe: moe.padding == "semantics" or moe.semantics == "flaxformer",
        lambda moe: (
            f"semantics: only flaxformer has several forms; under {moe.semantics} padding is {padding_of(moe)}"
        ),
        lambda moe: "moe.padding=semantics, or moe=flaxformer",
    ),
    Rule(
        "capacity",
        lambda moe: moe.capacity == "bounded" or moe.router not in ROUTERS or not ROUTERS[moe.router].experts_choose,
        lambda moe: "bounded where experts choose tokens: how many they take is their capacity",
        lambda moe: "moe.capacity=bounded, or moe.router=switch",
    ),
    Rule("second_threshold", lambda moe: moe.second_threshold > 0, lambda moe: "a number above 0",
         lambda moe: "moe.second_threshold=0.2"),
    Rule("second_loss_weight", lambda moe: moe.second_loss_weight >= 0, lambda moe: "at least 0", lambda moe: "0.5"),
)  # fmt: skip
