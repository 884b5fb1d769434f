"""`route` runs a router; `router_in` finds the one that a row names."""

from __future__ import annotations

import importlib

from conf.routing.settings import MoeRules
from model.moe.balance import router_stats, z_sums
from model.moe.routers.router import Router
from model.moe.routers.tokens import Tokens
from model.moe.tap import RoutingTap
from model.moe.types import Routing


def router_in(module: str) -> Router:
    """The router of the file that a row of `conf.routing.routers` names."""
    return importlib.import_module(module).ROUTER


def route(
    router: Router,
    tokens: Tokens,
    rules: MoeRules,
    capacity: int,
    tap: RoutingTap | None = None,
    *,
    counts: bool = True,
) -> Routing:
    """Send tokens to experts, at most `capacity` of a group to one expert; `counts`: with statistics.

    Gradients reach the router through gates, P and the z-loss; dispatch carries none. A `tap` may put other logits in
    the place of the computed ones.
    """
    logits_GSE = router.logits(tokens, rules)
    if tap is not None:
        logits_GSE = tap.logits(logits_GSE)
    decision = router.decide(logits_GSE, tokens, rules, capacity)
    z_sum, z_real = z_sums(decision.logits_GSE, tokens.real_GS, rules.losses.z_tokens)
    stats = router_stats(decision, tokens.real_GS, z_real) if counts else None
    return Routing(**vars(decision), capacity=capacity, z_sum=z_sum, stats=stats)
