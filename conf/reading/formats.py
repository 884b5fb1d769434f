"""Configurations written by older releases: what each format of run folders changed, and how an old one is read.

A written configuration (a run's config.yaml, the one inside a checkpoint's state.json) carries the number `FORMAT` of
the release that wrote it; one without a number is format 0. Whoever renames, removes or adds a field of the schema
raises `FORMAT` and adds a row to `CHANGES` or `ADDED`; nothing else has to know the old name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from conf.errors import ConfigError

FORMAT = 8
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
    Change(
        4,
        "model.moe",
        lambda value: {"moe.sparse_every": 0, "moe.decoder_sparse_every": 0} if value == "dense" else {},
        "moe=dense, or leaving it out for experts",
    ),
)
ADDED = (
    Added(1, "model.share_embeddings", True),
    Added(1, "moe.router_precision", "fp32"),
    Added(2, "logging.tensorboard", False),
    Added(3, "data.bad_rows", "refuse"),
    Added(5, "data.task", "span_corruption"),
    Added(6, "train.compile", "off"),
    Added(7, "data.character_coverage", 0.9995),
    Added(7, "data.byte_fallback", False),
    Added(7, "schedule.warmup_shape", "linear"),
    Added(8, "moe.capacity", "bounded"),
)


def stamped(tree: Mapping[str, Any]) -> dict[str, Any]:
    """`tree`, today's plain form of a configuration, with the number of its format, ready to be written."""
    return {KEY: FORMAT, **tree}


def modern(tree: Mapping[Any, Any], *, origin: str) -> dict[Any, Any]:
    """A written configuration in today's fields, without its number; what is wrong with it otherwise is left alone.

    Raises `ConfigError`, naming `origin`, for one that a newer release has written.
    """
    result = {key: dict(value) if isinstance(value, dict) else value for key, value in tree.items()}
    number = result.pop(KEY, 0)
    flat = {f"{key}.{name}": v for key, value in result.items() if isinstance(value, dict) for name, v in value.items()}
    now = {added.field: added.value for added in ADDED if number_of(number, origin) < added.since}
    now |= renamed(flat, number, origin=origin)
    for field in flat.keys() - now.keys():
        section, _, name = field.partition(".")
        del result[section][name]
    for field, value in now.items():
        section, _, name = field.partition(".")
        if isinstance(fields := result.setdefault(section, {}), dict):
            fields[name] = value
    return result


def renamed(flat: Mapping[str, Any], number: object, *, origin: str) -> dict[str, Any]:
    """Settings (dotted field -> value) of a format in today's fields; for what it raises see `modern`."""
    result = dict(flat)
    for change in CHANGES:
        if number_of(number, origin) < change.since and change.old in result:
            result |= change.now(result.pop(change.old))
    return result


def number_of(number: object, origin: str) -> int:
    """The number of a format that this release can read."""
    if type(number) is int and 0 <= number <= FORMAT:
        return number
    raise ConfigError(
        origin,
        got=f"a configuration of format {number}",
        needs=f"one of format {FORMAT} or older, which this release can read",
        hint="the release of Pointsman that wrote it, or a newer one",
    )


def hint_for(field: str) -> str | None:
    """What to type today instead of a field of an older format; None for any other name."""
    return next((change.hint for change in CHANGES if change.old == field), None)
