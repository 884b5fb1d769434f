"""Reads the text of a YAML file of settings, and refuses what would grow when it is built."""

from __future__ import annotations

import os

import yaml

from conf.errors import ConfigError
from conf.safety.regular import read_regular

MOST_BYTES = 1 << 20
_DEEPEST = 20  # sections hold fields, which hold lists


def read_yaml(path: str | os.PathLike[str], *, hint: str = "another file") -> str:
    """The text of a file of settings.

    An alias may stand for a text, but for no mapping or list: a dozen lines of those become more than fits in memory.

    Raises:
        OSError: it cannot be read, is no regular file or larger than any settings.
        ConfigError: it is no UTF-8; the text names the byte, and `hint` what to try.
        yaml.YAMLError: it is no YAML, or has such an alias, or is nested without end.
    """
    text = _decoded(path, read_regular(path, most=MOST_BYTES), hint)
    depth, collections = 0, set[str]()
    for event in yaml.parse(text, yaml.BaseLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if event.anchor:
                collections.add(event.anchor)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.AliasEvent) and event.anchor in collections:
            raise yaml.YAMLError(f"line {event.start_mark.line + 1}: an alias of a mapping or list, *{event.anchor}")
        if depth > _DEEPEST:
            raise yaml.YAMLError(f"line {event.start_mark.line + 1}: nested more than {_DEEPEST} deep")
    return text


def _decoded(path: str | os.PathLike[str], content: bytes, hint: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        got = f"0x{content[error.start]:02x} at byte {error.start} (line {line})"
        raise ConfigError(os.fspath(path), got=got, needs="text in UTF-8", hint=hint) from None
