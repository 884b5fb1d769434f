"""What fields a configuration has: dotted paths, their types, and the closest existing path to a mistyped one."""

from __future__ import annotations

import dataclasses
import difflib
import types
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from conf.errors import ConfigError
from conf.reading.formats import hint_for
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
    """The error for a path that does not exist, with the closest one that does."""
    if (renamed := hint_for(path)) is not None:
        return ConfigError(path, got=got, needs="its present name", hint=renamed)
    section, _, name = path.rpartition(".")
    known = list(leaf_types())
    same_name = [field for field in known if field.rpartition(".")[2] == name]
    siblings = [field for field in known if field.rpartition(".")[0] == section]
    close = same_name[:1] or difflib.get_close_matches(path, siblings, n=1, cutoff=0.6)
    close = close or difflib.get_close_matches(path, known, n=1, cutoff=0.6)
    if not close:
        by_name = {field.rpartition(".")[2]: field for field in reversed(known)}
        close = [by_name[match] for match in difflib.get_close_matches(name, list(by_name), n=1, cutoff=0.7)]
    hint = close[0] if close else "`pointsman config`, which lists every field"
    return ConfigError(path, got=got, needs="the name of an existing field", hint=hint)
