"""What every field and section means: read from the comments and docstrings of conf/schema.py, where each is once."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import tokenize
from functools import cache
from pathlib import Path
from typing import Literal, get_args, get_origin

from conf import schema
from conf.launchers import LAUNCHERS
from conf.optimizers import OPTIMIZERS
from conf.reading.fields import hints, leaf_types, takes_text, without_none
from conf.routing.routers import ROUTERS
from conf.sources import SOURCES
from conf.tasks.table import TASKS

# Fields whose values are rows of a table.
TABLES = {
    "data.source": tuple(SOURCES),
    "data.task": tuple(TASKS),
    "launch.launcher": tuple(LAUNCHERS),
    "moe.decoder_router": tuple(ROUTERS),
    "moe.router": tuple(ROUTERS),
    "optim.name": tuple(OPTIMIZERS),
}


def choices(path: str) -> tuple[str, ...]:
    """Every legal value of the field as it is typed; empty where they cannot be listed."""
    kind, optional = without_none(leaf_types()[path])
    values = TABLES.get(path) or (
        (True, False) if kind is bool else get_args(kind) if get_origin(kind) is Literal else ()
    )
    texts = tuple(str(value).lower() if isinstance(value, bool) else str(value) for value in values)
    return (*texts, "null") if texts and optional else texts


def is_free_text(path: str) -> bool:
    """Whether the field takes any text, and so may hold a secret; `fp32` is none, whatever variable has that value."""
    return path in leaf_types() and takes_text(path) and not choices(path)


def sections() -> dict[str, type]:
    """Name -> dataclass of every section, in the order of the schema."""
    kinds = hints(schema.RawRunConfig).items()
    return {name: kind for name, kind in kinds if isinstance(kind, type) and dataclasses.is_dataclass(kind)}


@cache
def meanings() -> dict[str, str]:
    """Dotted path of every section and field -> what it is; `null` as users type it, not None."""
    source = Path(inspect.getfile(schema)).read_text(encoding="utf-8")
    comments = _comments(source)
    of_class = {
        node.name: {
            field.target.id: _comment_of(field, comments)
            for field in node.body
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        }
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef)
    }
    found = {name: text for name, text in of_class["RawRunConfig"].items() if name not in sections()}
    for name, kind in sections().items():
        found[name] = inspect.cleandoc(kind.__doc__ or "")
        found |= {f"{name}.{field}": text for field, text in of_class[kind.__name__].items()}
    return {path: re.sub(r"\bNone\b", "null", text) for path, text in found.items()}


def _comments(source: str) -> dict[int, tuple[str, bool]]:
    """Line -> its comment, and whether there is nothing else on it."""
    lines = iter(source.splitlines(keepends=True))
    tokens = tokenize.generate_tokens(lambda: next(lines, ""))
    return {
        token.start[0]: (token.string.lstrip("# "), token.line.lstrip().startswith("#"))
        for token in tokens
        if token.type == tokenize.COMMENT
    }


def _comment_of(field: ast.AnnAssign, comments: dict[int, tuple[str, bool]]) -> str:
    """The lines of comment above a field and the one behind it."""
    above, line = [], field.lineno - 1
    while comments.get(line, ("", False))[1]:
        above.insert(0, comments[line][0])
        line -= 1
    behind = comments.get(field.end_lineno or field.lineno, ("", False))[0]
    return " ".join([*above, behind]).strip()
