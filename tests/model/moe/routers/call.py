"""Routers on plain tensors: what a layer does before it asks one."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from conf.routing.settings import MoeRules
from model.moe.routers.route import route, router_in
from model.moe.routers.tokens import Noise, Tokens
from model.moe.tap import RoutingTap
from model.moe.types import Routing


class Given:
    """`Noise` of given numbers."""

    def __init__(self, **sites: Tensor) -> None:
        self.sites = sites

    def uniform(self, site: str, width: int | None = None) -> Tensor:
        drawn = self.sites[site]
        assert drawn.dim() == 2 if width is None else drawn.shape[2] == width, f"{site}: {drawn.shape} for {width}"
        return drawn


def route_tokens(
    x_GSD: Tensor,
    real_GS: Tensor,
    weight_DE: Tensor,
    *,
    rules: MoeRules,
    capacity: int,
    noise: Noise | None = None,
    importance_GS: Tensor | None = None,
    tap: RoutingTap | None = None,
) -> Routing:
    """`route` by one matrix, with as many experts as it has columns."""
    tokens = Tokens(
        x_GSD=x_GSD, real_GS=real_GS, weights={"weight": weight_DE}, noise=noise, importance_GS=importance_GS
    )
    return route(router_in(rules.row.module), tokens, replace(rules, num_experts=weight_DE.shape[1]), capacity, tap)
