"""What the file of a router holds under the name `ROUTER`.

Shape suffixes: G groups, S tokens per group, E experts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from conf.routing.settings import MoeRules
from model.moe.routers.numerics import Numerics
from model.moe.routers.tokens import Tokens
from model.moe.types import Decision


def product(tokens: Tokens, rules: MoeRules) -> Tensor:
    """h(x) = x W, `[G, S, E]`."""
    return Numerics(rules, tokens.x_GSD.dtype).logits(tokens, tokens.weights["weight"])


class Router(NamedTuple):
    """What a router computes; both parts are pure and never wait for the device."""

    decide: Callable[[Tensor, Tokens, MoeRules, int], Decision]  # of logits, tokens, rules and capacity
    logits: Callable[[Tokens, MoeRules], Tensor] = product
