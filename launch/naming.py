"""The name of a run that was given none; its folder is called so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from time import strftime

from conf.schema import RunConfig


def default_name(cfg: RunConfig) -> str:
    """Preset and local time."""
    return f"{cfg.model.preset}-{strftime('%Y%m%d-%H%M%S')}"


def with_name(overrides: Sequence[str], cfg: RunConfig) -> tuple[RunConfig, list[str]]:
    """Configuration and overrides with a name: ranks that are started again must find the folder of the first ones."""
    if cfg.name is not None:
        return cfg, list(overrides)
    name = default_name(cfg)
    return replace(cfg, name=name), [*overrides, f"name={name}"]
