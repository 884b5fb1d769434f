"""What `pointsman config` says about fields: one, a section, or all of them, as text or as the page docs/fields.md."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from conf.compose import to_dict, tree_of
from conf.continued import compose_run, overrides_of
from conf.errors import ConfigError, ConfigErrors
from conf.reading.fields import describe_type, leaf_types, unknown_key
from conf.reading.meanings import choices, meanings, sections
from conf.reading.presets import presets
from conf.reading.setting_files import merged

PAGE_HEAD = """\
# Settings

Every field of a run. Written by `make fields` from the comments in conf/schema.py; edit those.

On the command line: `FIELD=VALUE`, or `GROUP=PRESET` for a file of conf/GROUP/. `null` means that the value is derived.
`pointsman config --explain FIELD` shows a field with its value under the settings that are typed beside it.
"""


def explain(path: str, overrides: Sequence[str] = ()) -> str:
    """The field or section at `path`, every one where it is empty, with the values that `overrides` come to."""
    values = Values(overrides)
    if path in leaf_types():
        return "\n".join(
            [f"{path}: {meanings()[path]}", f"  legal  {legal_values(path)}", f"  value  {values.text(path)}"]
        )
    if path and path not in sections():
        close = difflib.get_close_matches(path, sections(), n=1)
        needs = "a field or one of the sections " + ", ".join(sections())
        raise ConfigError(path, got="an unknown setting", needs=needs, hint=close[0]) if close else unknown_key(path)
    blocks = [_block(name, values) for name in ([path] if path else ["", *sections()])]
    return "\n\n".join("\n".join(block) for block in blocks)


class Values:
    """What fields are under some settings: as presets and overrides say, and what is derived where they say null."""

    def __init__(self, overrides: Sequence[str]) -> None:
        self._given = tree_of(merged(overrides_of(overrides), overrides))
        try:
            self._derived = to_dict(compose_run(overrides))
        except (ConfigError, ConfigErrors):  # a field can be explained although another one has still to be set
            self._derived = self._given

    def text(self, path: str) -> str:
        """The value as it is typed."""
        given, derived = _at(self._given, path), _at(self._derived, path)
        return f"null -> {_typed(derived)}" if given is None and derived is not None else _typed(derived)


def legal_values(path: str) -> str:
    """In words."""
    listed = choices(path)
    return ", ".join(listed) if listed else describe_type(leaf_types()[path])


def page() -> str:
    """All fields as Markdown, section by section."""
    lines = [PAGE_HEAD]
    for section in ["", *sections()]:
        if section:
            lines += [f"## {section}", "", meanings()[section], *_presets_line(section), ""]
        lines += ["| field | values | meaning |", "| --- | --- | --- |"]
        for path in _fields(section):
            cells = (f"`{path}`", legal_values(path), meanings()[path])
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _presets_line(section: str) -> list[str]:
    return ["", textwrap.fill(f"Presets of `{section}=`: {', '.join(presets(section))}.", 120)]


def _block(section: str, values: Values) -> list[str]:
    rows = [(path, values.text(path), meanings()[path]) for path in _fields(section)]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    widths[1] = min(widths[1], 24)
    head = [f"{section}: {meanings()[section]}", f"  presets: {', '.join(presets(section))}"] if section else []
    return [*head, *(f"  {path:<{widths[0]}}  {value:<{widths[1]}}  {text}" for path, value, text in rows)]


def _fields(section: str) -> Iterator[str]:
    return (path for path in leaf_types() if path.rpartition(".")[0] == section)


def _at(tree: Any, path: str) -> Any:
    for key in path.split("."):
        tree = tree[key]
    return tree


def _typed(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_typed, value)) or "[]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
