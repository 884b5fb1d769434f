"""The routers by name, beside their rows in `conf.routing.routers`, and `route`, which runs one.

Shape suffixes: G groups, S tokens per group, E experts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from conf.routing.settings import MoeRules
from model.moe.balance import router_stats, z_sums
from model.moe.routers import experts_choose, ntlb, tokens_choose, top_2
from model.moe.routers.numerics import Numerics
from model.moe.routers.tokens import Tokens
from model.moe.tap import RoutingTap
from model.moe.types import Decision, Routing


def product(tokens: Tokens, rules: MoeRules) -> Tensor:
    """h(x) = x W, `[G, S, E]`."""
    return Numerics(rules, tokens.x_GSD.dtype).logits(tokens, tokens.weights["weight"])


class Router(NamedTuple):
    """What a router computes; both parts are pure and never wait for the device."""

    decide: Callable[[Tensor, Tokens, MoeRules, int], Decision]  # of logits, tokens, rules and capacity
    logits: Callable[[Tokens, MoeRules], Tensor] = product


ROUTERS: dict[str, Router] = {
    "switch": Router(tokens_choose.decide),
    "top_2": Router(top_2.decide),
    "switch_max": Router(tokens_choose.decide_by_gate),
    "expert_choice": Router(experts_choose.decide),
    "ntlb": Router(ntlb.decide),
}


def route(tokens: Tokens, rules: MoeRules, capacity: int, tap: RoutingTap | None = None) -> Routing:
    """Send tokens to experts, at most `capacity` of a group to one expert.

    Gradients reach the router through gates, P and the z-loss; dispatch carries none. A `tap` may put other logits in
    the place of the computed ones.
    """
    router = ROUTERS[rules.router]
    logits_GSE = router.logits(tokens, rules)
    if tap is not None:
        logits_GSE = tap.logits(logits_GSE)
    decision = router.decide(logits_GSE, tokens, rules, capacity)
    z_sum, z_real = z_sums(decision.logits_GSE, tokens.real_GS, rules.losses.z_tokens)
    return Routing(
        **vars(decision), capacity=capacity, z_sum=z_sum, stats=router_stats(decision, tokens.real_GS, z_real)
    )
