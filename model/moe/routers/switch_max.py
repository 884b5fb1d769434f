"""As tokens choose, but tokens of higher first gate are served first: batch-prioritised routing."""

from __future__ import annotations

from torch import Tensor

from conf.routing.settings import MoeRules
from model.moe.routers import tokens_choose
from model.moe.routers.router import Router
from model.moe.routers.tokens import Tokens
from model.moe.types import Decision


def decide(logits_GSE: Tensor, tokens: Tokens, rules: MoeRules, capacity: int) -> Decision:
    """A later token can take an earlier one's slot."""
    return tokens_choose.choose(logits_GSE, tokens, rules, capacity, by_gate=True)


ROUTER = Router(decide)
