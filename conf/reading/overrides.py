"""Reads `key=value` overrides before Hydra does: finds unknown keys and presets, and quotes free text.

Hydra's own messages name neither the closest field nor how to quote a path, so every override is checked against the
schema and the preset files first; what is handed on to Hydra is then known to fit.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from conf.errors import ConfigError
from conf.reading.convert import example, raise_all
from conf.reading.fields import describe_type, leaf_types, takes_text, unknown_key, without_none
from conf.reading.presets import groups, presets
from conf.safety import shell

_SHAPE = re.compile(r"(?P<sign>[+~]{0,2})(?P<key>[A-Za-z_][\w./@:-]*)=(?P<value>.*)", re.DOTALL)
_MEANT = {
    ("model", "dense"): "moe=dense",
    ("logging", "off"): "logging.wandb=off",
}
_VARIABLE = "${oc.env:"  # a reference to a variable of the environment, which refers to nothing further
_PART = re.compile(r"""\s*('[^']*'(?=\s*(?:,|$))|"[^"]*"(?=\s*(?:,|$))|[^,]+)""")  # of a list; quotes keep commas


class Overrides(NamedTuple):
    """Overrides that fit the schema."""

    lines: tuple[str, ...]  # for Hydra
    keys: frozenset[str]  # fields and groups the user set


def read_overrides(lines: Sequence[str]) -> Overrides:
    """Check overrides. Raises `ConfigError` or `ConfigErrors` that name the key and the closest existing one."""
    errors: list[ConfigError] = []
    checked: list[tuple[str, str]] = []
    for line in lines:
        try:
            checked.append(_read(line))
        except ConfigError as error:
            errors.append(error)
    raise_all(errors)
    return Overrides(tuple(line for line, _ in checked), frozenset(key for _, key in checked))


def value_of(line: str) -> Any:
    """The value in one of the lines that `read_overrides` gives."""
    return _parse(line.partition("=")[0], line).value()


def _read(line: str) -> tuple[str, str]:
    match = _SHAPE.fullmatch(line)
    if (refused := shell.control_character(match["key"] if match else "setting", line)) is not None:
        raise refused
    if match is None:
        key = line.lstrip("+~").partition("=")[0] or line
        bare = line.lstrip("-")
        hint = shell.word(bare) if bare != line and _SHAPE.fullmatch(bare) else "train.steps=100"
        raise ConfigError(key, got=line, needs="an override of the form key=value", hint=hint)
    key, value = match["key"], match["value"]
    if "~" in match["sign"]:
        raise ConfigError(key, got=line, needs="a value: fields cannot be deleted", hint=f"{key}=VALUE")
    if key in groups():
        return f"{key}={_preset(key, value)}", key
    if key.rpartition(".")[2] == "_target_":
        raise ConfigError(key, got=value, needs="no _target_: a configuration never runs code", hint="removing it")
    if key not in leaf_types():
        raise unknown_key(key, value)
    if value.replace(_VARIABLE, "").count("${") > 1:
        needs = "at most one ${reference}: settings that refer to each other several times each grow without bound"
        raise ConfigError(key, got=value, needs=needs, hint="the text itself")
    if takes_text(key):
        value = _quoted(key, value)
    parsed = _parse(key, f"{key}={value}")
    if parsed.is_sweep_override():
        raise ConfigError(key, got=value, needs="one value: sweeps are not supported", hint="one run per value")
    return f"{key}={value}", key


def _preset(group: str, value: str) -> str:
    name = value.strip().strip("'\"")
    if name not in presets(group):
        close = difflib.get_close_matches(name, presets(group), n=1, cutoff=0.5)
        known = ", ".join(presets(group))
        hint = _MEANT.get((group, name)) or f"{group}={(close or presets(group))[0]}"
        raise ConfigError(group, got=value, needs=f"one of {known}", hint=hint)
    return name


def _quoted(key: str, value: str) -> str:
    """Free text as Hydra's grammar wants it, so that blanks and brackets need no second quoting."""
    kind = without_none(leaf_types()[key])[0]
    # No field holds lists of lists, and Hydra takes a second for thousands of brackets.
    is_list = value.startswith("[") and not value.startswith("[[") and value.endswith("]")
    if is_list and kind is not str and _parses(key, value):
        return value
    if value == "null":
        return value
    if kind is str:
        return _quote(value)
    return "[" + ",".join(_quote(part) for part in _PART.findall(value) if part.strip()) + "]"


def _quote(text: str) -> str:
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1]
    return QuotedString(text=text, quote=Quote.single).with_quotes()


def _parses(key: str, value: str) -> bool:
    try:
        return isinstance(_parse(key, f"{key}={value}").value(), list)
    except ConfigError:
        return False


def _parse(key: str, line: str) -> Override:
    parsed = _parsed(line)
    if parsed is not None:
        return parsed
    value, kind = line.partition("=")[2], leaf_types()[key]
    raise ConfigError(key, got=value, needs=describe_type(kind), hint=example(key, without_none(kind)[0], value))


@lru_cache(maxsize=256)  # a command reads its lines more than once, and odd ones take Hydra a quarter of a second
def _parsed(line: str) -> Override | None:
    """As Hydra reads it; None for what it cannot read."""
    try:
        return OverridesParser.create().parse_override(line)
    except (HydraException, ValueError, RecursionError):  # of thousands of digits, or of brackets
        return None
