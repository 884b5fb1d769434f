"""Strict conversion of plain dictionaries into the frozen dataclasses of the schema: nothing missing, unknown or cast.

The only conversions made are a whole number where a number is wanted, a list into a tuple, and a text with commas into
a tuple of texts. `true` is not 1 and "8" is not 8.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal, get_args, get_origin

from conf.errors import ConfigError, ConfigErrors
from conf.reading.fields import describe_type, hints, unknown_key, without_none
from conf.safety import shell
from conf.schema import RawRunConfig

_BAD = object()  # stands in for a value that had an error, which has been noted


def raise_all(errors: list[ConfigError]) -> None:
    """Raise nothing, the only error, or all of them as one `ConfigErrors`."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ConfigErrors(errors)


def to_config(tree: Mapping[Any, Any]) -> RawRunConfig:
    """The typed configuration. Raises `ConfigError`, or `ConfigErrors` with every problem when there are several."""
    errors: list[ConfigError] = []
    _refuse_targets(tree, "", errors)
    raise_all(errors)
    config = _section(RawRunConfig, tree, "", errors)
    raise_all(errors)
    assert isinstance(config, RawRunConfig)
    return config


def to_dict(config: Any) -> dict[str, Any]:
    """Plain dictionaries, lists and scalars, ready for JSON or YAML; `to_config` takes them back."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted field -> value of a plain configuration."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        inner = flat(value) if isinstance(value, Mapping) else None
        leaves |= {key: value} if inner is None else {f"{key}.{name}": leaf for name, leaf in inner.items()}
    return leaves


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of which `flat` made `leaves`."""
    tree: dict[str, Any] = {}
    for path, value in leaves.items():
        *sections, name = path.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = value
    return tree


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    return list(value) if isinstance(value, tuple) else value


def _refuse_targets(node: Any, path: str, errors: list[ConfigError]) -> None:
    """Hydra would call what `_target_` names; a configuration of ours never runs code."""
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        where = f"{path}.{key}" if path else str(key)
        if key == "_target_":
            errors.append(
                ConfigError(where, got=value, needs="no _target_: a configuration never runs code", hint="removing it")
            )
        else:
            _refuse_targets(value, where, errors)


def _section(kind: type, tree: Any, path: str, errors: list[ConfigError]) -> Any:
    if not isinstance(tree, Mapping):
        errors.append(ConfigError(path, got=tree, needs="a section with fields", hint=f"{path}.FIELD=VALUE"))
        return _BAD
    prefix = f"{path}." if path else ""
    wanted = hints(kind)
    errors.extend(unknown_key(f"{prefix}{key}", value) for key, value in tree.items() if key not in wanted)
    values = {}
    for name, field_kind in wanted.items():
        where = prefix + name
        if name not in tree:
            needs = "a section with fields" if dataclasses.is_dataclass(field_kind) else describe_type(field_kind)
            errors.append(ConfigError(where, got="nothing", needs=needs, hint=f"adding {where} to the configuration"))
        elif dataclasses.is_dataclass(field_kind) and isinstance(field_kind, type):
            values[name] = _section(field_kind, tree[name], where, errors)
        else:
            values[name] = _leaf(field_kind, tree[name], where, errors)
    complete = len(values) == len(wanted) and not any(value is _BAD for value in values.values())
    return kind(**values) if complete else _BAD


def _leaf(kind: Any, value: Any, path: str, errors: list[ConfigError]) -> Any:
    bare, optional = without_none(kind)
    if value is None and optional:
        return None
    if get_origin(bare) is Literal:
        converted = _choice(bare, value)
    elif bare == tuple[str, ...]:
        converted = _texts(value)
    else:
        converted = _scalar(bare, value)
    if converted is _BAD:
        errors.append(ConfigError(path, got=value, needs=describe_type(kind), hint=example(path, bare, value)))
    return converted


def _choice(kind: Any, value: Any) -> Any:
    # `True in (0, 1, 2)` holds in Python, so types are compared as well
    return next((choice for choice in get_args(kind) if type(choice) is type(value) and choice == value), _BAD)


def _texts(value: Any) -> Any:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
        return tuple(value)
    return _BAD


def _scalar(kind: type, value: Any) -> Any:
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value) if math.isfinite(value) else _BAD
        except OverflowError:  # a whole number of hundreds of digits
            return _BAD
    return value if type(value) is kind else _BAD


def example(path: str, kind: Any, value: Any) -> str:
    """A value that would be accepted, as close as possible to what was given."""
    if kind in (int, float) and isinstance(value, str):  # '3' in quotes, or digits of another script
        with suppress(ValueError):
            number = kind(value)
            if math.isfinite(number):
                return f"{path}={number}"
    if get_origin(kind) is Literal:
        choices = [str(choice) for choice in get_args(kind)]
        return f"{path}={(difflib.get_close_matches(str(value), choices, n=1, cutoff=0.4) or choices)[0]}"
    if kind is int and isinstance(value, float) and math.isfinite(value):
        return f"{path}={round(value)}"
    if kind is str:
        return shell.word(f"{path}={value}") if value is not None else f"{path}=TEXT"
    return f"{path}=" + {int: "8", float: "0.5", bool: "true"}.get(kind, "[first,second]")
