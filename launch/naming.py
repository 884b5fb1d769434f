"""A name for a run that may be started more than once: ranks that come back must find the folder of the first ones."""

from __future__ import annotations

from collections.abc import Sequence
from time import strftime

from conf.schema import RunConfig


def with_name(overrides: Sequence[str], cfg: RunConfig) -> tuple[RunConfig, list[str]]:
    """Configuration and overrides with a name, which is the preset and the time unless there is one already."""
    from conf.compose import compose

    if cfg.name is not None:
        return cfg, list(overrides)
    named = [*overrides, f"name={cfg.model.preset}-{strftime('%Y%m%d-%H%M%S')}"]
    return compose(named), named
