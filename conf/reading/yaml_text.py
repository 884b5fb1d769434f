"""Reads the text of a YAML file of settings, and refuses what would grow when it is built."""

from __future__ import annotations

import os

import yaml

from conf.safety.regular import read_regular

MOST_BYTES = 1 << 20
_DEEPEST = 20  # sections hold fields, which hold lists


def read_yaml(path: str | os.PathLike[str]) -> str:
    """The text of a file of settings.

    An alias may stand for a text, but for no mapping or list: a dozen lines of those become more than fits in memory.

    Raises:
        OSError, UnicodeDecodeError: it cannot be read, is no regular file or larger than any settings.
        yaml.YAMLError: it is no YAML, or has such an alias, or is nested without end.
    """
    text = read_regular(path, most=MOST_BYTES).decode("utf-8")
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
