"""Files of settings, as `--config FILE.yaml` reads them and as a run keeps what was typed for it.

A file holds overrides: `train: {steps: 300}` or `train.steps: 300` for a field, `model: small_long` for a group. Every
value is taken as the text that would be typed, so that what follows (checks, hints, quoting) is that of the command
line, and a file can never do more than a line of overrides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from conf.errors import ConfigError
from conf.reading.formats import FORMAT, KEY, renamed
from conf.reading.meanings import is_free_text
from conf.reading.paths import user_path
from conf.reading.yaml_text import read_yaml
from conf.safety.redact import by_variable, redact_text

OPTION = "--config"
_MOST = 1_000  # settings in a file: far more than there are fields


def expand(words: Sequence[str]) -> list[str]:
    """`words` with the overrides of the files that `--config` names put before all others, which win over them."""
    files, typed, rest = [], [], list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if name != OPTION:
            typed.append(word)
        elif equals or rest:
            files.append(value if equals else rest.pop(0))
        else:
            raise ConfigError(OPTION, got="nothing", needs="a YAML file of settings", hint=f"{OPTION} mine.yaml")
    return with_files(files, typed)


def with_files(files: Sequence[str | Path], typed: Sequence[str]) -> list[str]:
    """The overrides of `files`, of which a later one wins, and then `typed` ones."""
    words: list[str] = []
    for file in files:
        words = merged(words, read_settings(user_path(file)))
    return [*words, *typed] if not words else merged(words, typed)


def merged(words: Sequence[str], later: Sequence[str]) -> list[str]:
    """`words` without those that `later` sets anew, and `later`."""
    again = {key_of(word) for word in later}
    return [*(word for word in words if key_of(word) not in again), *later]


def key_of(word: str) -> str:
    """The field or group that an override sets."""
    return word.lstrip("+~").partition("=")[0]


class _Loader(yaml.BaseLoader):
    """Texts, lists and mappings alone, of which no key is given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping."""
        seen = set[str]()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: {key.value} is given a second time")
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def read_settings(path: Path) -> list[str]:
    """The overrides of a file. Raises `ConfigError` if it cannot be read as settings."""
    needs = "a YAML file of settings, e.g. `train.steps: 300`"
    try:
        tree = yaml.load(read_yaml(path), _Loader)
    except (OSError, yaml.YAMLError) as error:
        got = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(str(path), got=got, needs=needs) from None
    if tree and not isinstance(tree, Mapping):
        raise ConfigError(str(path), got=tree, needs=needs)
    flat: dict[str, Any] = {}
    for field, value in _leaves(tree or {}, ""):
        if field in flat:
            raise ConfigError(f"{path}: {field}", got=value, needs=f"one value, and {flat[field]!r} stands there too")
        flat[field] = value
    if len(flat) > _MOST:
        raise ConfigError(str(path), got=f"{len(flat):,} settings", needs=f"at most {_MOST:,}")
    if KEY in flat:  # written by a run
        number = flat.pop(KEY)
        flat = renamed(flat, int(number) if number.isdecimal() else number, origin=str(path))
    return [f"{key}={_typed(value)}" for key, value in flat.items()]


def _leaves(tree: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _typed(value: Any) -> str:
    """A value as it is typed."""
    if isinstance(value, list):
        from hydra.core.override_parser.types import Quote, QuotedString  # takes a while, and few files hold lists

        return "[" + ",".join(QuotedString(str(part), Quote.single).with_quotes() for part in value) + "]"
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


def settings_text(words: Sequence[str]) -> str:
    """What `read_settings` takes back as `words`: a YAML file without secrets."""
    flat: dict[str, str] = {}
    for word in map(told, words):
        key, value = key_of(word), word.partition("=")[2]
        flat[key] = redact_text(value) if is_free_text(key) else value
    return yaml.safe_dump({KEY: FORMAT, **flat}, sort_keys=False, allow_unicode=True)


def told(word: str) -> str:
    """An override as it may be written down: a secret that a variable of the environment holds is named, not told."""
    return by_variable(word) if is_free_text(key_of(word)) else word
