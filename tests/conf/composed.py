"""Composition remembered for the whole test run: Hydra takes a tenth of a second for each."""

from __future__ import annotations

from functools import cache

from conf.compose import compose
from conf.schema import RunConfig


@cache
def composed(*overrides: str) -> RunConfig:
    """`compose(overrides)`; configurations are frozen, so tests can share them."""
    return compose(overrides)
