"""Which files a path or a glob names, and how a file is read by its name: one rule for configuration and reading."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from conf.errors import ConfigError

CONFIG, MANIFEST = "config.yaml", "manifest.json"  # by which the folders of a run and of a checkpoint are known
FileFormat = Literal["text", "json", "parquet", "arrow"]
_FORMATS: dict[str, FileFormat] = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".rst": "text",
    ".jsonl": "json",
    ".json": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
_ZIPPED: tuple[FileFormat, ...] = ("text", "json")  # also as NAME.gz


def matching(pattern: str) -> list[str]:
    """What `pattern`, a path or a glob with `~`, names: as much of it as exists as it stands is no glob."""
    if not pattern:
        return []
    parts = os.path.expanduser(pattern).split(os.sep)
    known = next(end for end in range(len(parts), -1, -1) if end == 0 or os.path.exists(_joined(parts[:end])))
    head = glob.escape(_joined(parts[:known])) if known else ""
    return sorted(glob.glob(os.path.join(head, *parts[known:]), recursive=True))


def user_path(text: str | os.PathLike[str]) -> Path:
    """A path with `~` expanded; one that begins with a home that nobody has stays as it is, as in a shell."""
    return Path(os.path.expanduser(text))


def is_there(path: Path) -> bool:
    """Whether it exists; no for what cannot be looked at, or cannot be a path at all."""
    return os.path.exists(path)


def is_run(path: Path) -> bool:
    """Whether it is the folder of a run, or of one checkpoint."""
    return is_there(path / CONFIG) or is_there(path / MANIFEST)


def _joined(parts: Sequence[str]) -> str:
    return os.sep.join(parts) or os.sep


def format_of(name: str) -> FileFormat | None:
    """How a file is read, by the end of its name; None: not at all."""
    stem, zipped = (name[:-3], True) if name.lower().endswith(".gz") else (name, False)
    found = _FORMATS.get(os.path.splitext(stem)[1].lower())
    return None if zipped and found not in _ZIPPED else found


def text_files(field: str, patterns: Sequence[str]) -> tuple[Path, ...]:
    """Every file that a pattern names, sorted by name, each once.

    Raises:
        ConfigError: a pattern names no file, or one that is not known how to read.
    """
    found: set[str] = set()
    for pattern in patterns:
        names = matching(pattern)
        files = [name for name in names if os.path.isfile(name)]
        if not files:
            needs = (
                f"an existing file or a glob that matches some ({_absence(pattern, names)}, seen from {os.getcwd()})"
            )
            raise ConfigError(field, got=pattern, needs=needs, hint="an absolute path, or a quoted 'docs/*.jsonl'")
        found.update(files)
    for name in sorted(found):
        if format_of(name) is None:
            needs = f"files named {' '.join(_FORMATS)}, or .gz of text and JSON"
            raise ConfigError(field, got=name, needs=needs, hint="renaming or converting it, or a narrower glob")
    return tuple(Path(name) for name in sorted(found))


def _absence(pattern: str, names: Sequence[str]) -> str:
    if names:
        folders = all(os.path.isdir(name) for name in names)
        return ("only folders match" if len(names) > 1 else "it is a folder") if folders else "it is no regular file"
    there = os.path.dirname(os.path.expanduser(pattern).partition("*")[0]) or "."
    return "nothing matches" if os.path.isdir(there) else f"folder {there!r} does not exist"


def held_out_files(files: Sequence[str], validation_files: Sequence[str]) -> tuple[Path, ...]:
    """The files of `data.validation_files`. Raises `ConfigError` when one is in `data.files` too, also as a link."""
    held_out = text_files("data.validation_files", validation_files)
    names = (name for pattern in files for name in matching(pattern) if held_out)
    trained = {inode(name) for name in names if os.path.isfile(name)}
    if both := [path for path in held_out if inode(path) in trained]:
        raise ConfigError(
            "data.validation_files",
            got=str(both[0]),
            needs="files that are not in data.files: the splits must not overlap",
            hint="a narrower glob in data.files",
        )
    return held_out


def inode(path: str | Path) -> tuple[int, int]:
    """What a file is known by under each of its names."""
    found = os.stat(path)
    return found.st_dev, found.st_ino


def check_file(field: str, path: str, what: str) -> Iterator[ConfigError]:
    """`path`, which may begin with `~`, is a file."""
    expanded = os.path.expanduser(path)
    if os.path.isfile(expanded):
        return
    missing = _absence(path, [expanded] if os.path.exists(expanded) else [])
    yield ConfigError(field, got=path, needs=f"{what} ({missing}, seen from {os.getcwd()})", hint="an absolute path")
