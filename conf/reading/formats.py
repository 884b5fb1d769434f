"""Configurations written by older releases: what each format of run folders changed, and how an old one is read.

A written configuration (a run's config.yaml, the one inside a checkpoint's state.json) carries the number `FORMAT` of
the release that wrote it; one without a number is format 0. Whoever renames, removes or adds a field of the schema
raises `FORMAT` and adds a row to `CHANGES` or `ADDED`; nothing else has to know the old name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any, NamedTuple

from conf.errors import ConfigError

FORMAT = 1
KEY = "format"  # of the number in a written configuration


class Change(NamedTuple):
    """A field that is no more."""

    since: int  # the first format without it
    old: str
    now: Callable[[Any], dict[str, Any]]  # its value -> today's fields that say the same
    hint: str  # to whoever types the old name


class Added(NamedTuple):
    """A field that older formats lack, with the value at which a run does what it did before there was the field."""

    since: int  # the first format with it
    field: str
    value: Any


CHANGES = (
    # what Hugging Face, fairseq and t5 call it; `relative_step` is another knob there
    Change(1, "optim.relative_step", lambda value: {"optim.scale_parameter": value}, "optim.scale_parameter"),
)
ADDED = (
    Added(1, "model.share_embeddings", True),
    Added(1, "moe.router_precision", "fp32"),
)


def stamped(tree: Mapping[str, Any]) -> dict[str, Any]:
    """`tree`, today's plain form of a configuration, with the number of its format, ready to be written."""
    return {KEY: FORMAT, **tree}


def modern(tree: Mapping[Any, Any], *, origin: str) -> dict[Any, Any]:
    """A written configuration in today's fields, without its number; what is wrong with it otherwise is left alone.

    Raises `ConfigError`, naming `origin`, for one that a newer release has written.
    """
    result = deepcopy(dict(tree))
    number = result.pop(KEY, 0)
    if type(number) is not int or not 0 <= number <= FORMAT:
        raise ConfigError(
            origin,
            got=f"a configuration of format {number}",
            needs=f"one of format {FORMAT} or older, which this release can read",
            hint="the release of Pointsman that wrote it, or a newer one",
        )
    for change in CHANGES:
        section, _, name = change.old.partition(".")
        if number < change.since and isinstance(result.get(section), dict) and name in result[section]:
            for field, value in change.now(result[section].pop(name)).items():
                _put(result, field, value)
    for added in ADDED:
        section, _, name = added.field.partition(".")
        if number < added.since and isinstance(result.get(section), dict) and name not in result[section]:
            _put(result, added.field, added.value)
    return result


def _put(tree: dict[Any, Any], field: str, value: Any) -> None:
    section, _, name = field.partition(".")
    tree.setdefault(section, {})[name] = value


def hint_for(field: str) -> str | None:
    """What to type today instead of a field of an older format; None for any other name."""
    return next((change.hint for change in CHANGES if change.old == field), None)
