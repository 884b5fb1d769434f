"""What fields a configuration has: dotted paths, their types, and the closest existing path to a mistyped one."""

from __future__ import annotations

import dataclasses
import difflib
import types
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from conf.errors import ConfigError
from conf.reading.elsewhere import known_elsewhere
from conf.reading.formats import hint_for
from conf.reading.presets import groups, presets
from conf.safety.redact import REDACTED, is_secret_name
from conf.schema import RawRunConfig


@cache
def hints(section: type) -> dict[str, Any]:
    """Field name -> type of one dataclass of the schema."""
    return get_type_hints(section)


@cache
def leaf_types(section: type = RawRunConfig, prefix: str = "") -> dict[str, Any]:
    """Dotted path -> type of every field that holds a value, e.g. ``moe.num_experts`` -> int."""
    leaves: dict[str, Any] = {}
    for name, kind in hints(section).items():
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            leaves.update(leaf_types(kind, f"{prefix}{name}."))
        else:
            leaves[prefix + name] = kind
    return leaves


def without_none(kind: Any) -> tuple[Any, bool]:
    """A field's type without ``| None``, and whether ``None`` was allowed."""
    if get_origin(kind) in (Union, types.UnionType):
        rest = [part for part in get_args(kind) if part is not types.NoneType]
        assert len(rest) == 1, f"unsupported type in the schema: {kind}"
        return rest[0], True
    return kind, False


def takes_text(path: str) -> bool:
    """Whether the field at `path` holds free text (str or a tuple of them), so that its value needs no quoting."""
    kind = without_none(leaf_types().get(path))[0]
    return kind is str or kind == tuple[str, ...]


def describe_type(kind: Any) -> str:
    """A type in words a user knows."""
    kind, optional = without_none(kind)
    if get_origin(kind) is Literal:
        words = "one of " + ", ".join(str(choice) for choice in get_args(kind))
    else:
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(
            kind, "a list of texts"
        )
    return f"{words} or null" if optional else words


def unknown_key(path: str, got: object = "an unknown setting") -> ConfigError:
    """The error for a path that does not exist, with the one that is meant if that is plain."""
    got = REDACTED if is_secret_name(path) else got
    if (now := hint_for(path)) is not None:
        return ConfigError(path, got=got, needs="its present name", hint=now)
    name = path.lower()  # t5x's are in capitals
    if (elsewhere := known_elsewhere(name)) is not None:
        return ConfigError(path, got=got, needs=elsewhere[0], hint=elsewhere[1])
    hint = _group_meant(name, str(got)) or _field_meant(name) or "`pointsman config --fields`, which lists them"
    return ConfigError(path, got=got, needs="the name of an existing field", hint=hint)


def _group_meant(key: str, value: str) -> str | None:
    """`model=small` for `modle=small`: a group misspelt, whose preset the value is, or nearly."""
    if "." in key:
        return None
    for group in difflib.get_close_matches(key, groups(), n=1, cutoff=0.6):
        if names := difflib.get_close_matches(value, presets(group), n=1, cutoff=0.6):
            return f"{group}={names[0]}"
    return None


def _field_meant(path: str) -> str | None:
    section, _, name = path.rpartition(".")
    known = list(leaf_types())
    by_name: dict[str, list[str]] = {}
    for field in known:
        by_name.setdefault(field.rpartition(".")[2], []).append(field)
    if len(same := by_name.get(name, [])) == 1:  # in another section
        return same[0]
    siblings = [field for field in known if field.rpartition(".")[0] == section]
    names = difflib.get_close_matches(name, [field.rpartition(".")[2] for field in siblings], n=1, cutoff=0.75)
    if names:
        return f"{section}.{names[0]}".lstrip(".")
    alike = [f for n in difflib.get_close_matches(name, by_name, cutoff=0.75) for f in by_name[n]]
    if whole := difflib.get_close_matches(path, alike, n=1, cutoff=0.8):  # section and name misspelt
        return whole[0]
    names = difflib.get_close_matches(name, by_name, n=1, cutoff=0.88)
    return by_name[names[0]][0] if names and len(by_name[names[0]]) == 1 else None
