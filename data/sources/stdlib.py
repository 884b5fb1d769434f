"""The default corpus: source, docstrings and documentation of the Python standard library on this machine."""

from __future__ import annotations

import ast
import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from conf.errors import DataError
from conf.schema import DataConfig
from data.sources.splitting import split_text
from data.sources.texts import Texts, file_states

_SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "encodings", "cjkencodings", "ensurepip"}
)
_TOPICS = Path("pydoc_data") / "topics.py"
_TEXT_SUFFIXES = frozenset({".txt", ".rst"})
_MAX_TEXT_FILE = 400_000  # larger text files are tables
_MIN_LETTERS = 0.35  # share of letters below which a document is a table of numbers or escapes


def texts(data: DataConfig) -> Texts:
    """The documents of this Python's library. Raises DataError where it has no source files."""
    root = stdlib_root()
    files = stdlib_files(root)
    if not files:
        raise DataError(f"data=stdlib: no source files below {root}; use data=text data.files='...' on this machine")
    state = [sys.version, str(root), file_states(files, root=root)]
    return Texts(read=lambda: stdlib_documents(root), state=state)


def stdlib_root() -> Path:
    """Folder of the running interpreter's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def stdlib_files(root: Path) -> list[Path]:
    """Files the corpus is made of, in a fixed order."""
    found = []
    for folder, names, files in _walk(root):
        names[:] = sorted(name for name in names if name not in _SKIPPED_FOLDERS and not name.startswith("config-"))
        inside_tests = "test" in folder.relative_to(root).parts
        for name in sorted(files):
            path = folder / name
            if path.suffix == ".py" or (path.suffix in _TEXT_SUFFIXES and not inside_tests):
                found.append(path)
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def _walk(root: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    for folder, names, files in os.walk(root):  # Path.walk came with Python 3.12
        yield Path(folder), names, files


def stdlib_documents(root: Path) -> Iterator[str]:
    """Documents of a few kB in a fixed order, without files that are not UTF-8 and documents that are mostly tables."""
    for path in stdlib_files(root):
        content = path.read_bytes()
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            continue  # test data for other encodings
        relative = path.relative_to(root)
        if relative == _TOPICS:
            for topic in _topics(text):
                yield from _readable(split_text(topic))
        elif path.suffix == ".py":
            yield from _readable(split_text(text, code=True))
        elif len(text) <= _MAX_TEXT_FILE:
            yield from _readable(split_text(text))


def _topics(source: str) -> list[str]:
    """The texts of `help("topics")`, read as a literal so that nothing of the file runs."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "topics":
            topics: dict[str, str] = ast.literal_eval(node.value)
            return [topics[name] for name in sorted(topics)]
    return []


def _readable(documents: Iterator[str]) -> Iterator[str]:
    for document in documents:
        letters = sum(map(str.isalpha, document))
        if document.strip() and letters >= _MIN_LETTERS * len(document.replace(" ", "")):
            yield document
