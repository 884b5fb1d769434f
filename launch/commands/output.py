"""Files that a command line names to be written: refused before any work where they cannot be, free of secrets."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import click

from conf.errors import ConfigError
from conf.reading.paths import is_there
from conf.safety.redact import redact_text
from conf.safety.writing import write_whole
from launch.commands.parameters import UserPath


class OutputFile(UserPath):
    """A path with `~` expanded that can be written as far as one look tells; an older file there is replaced."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path; fails for a folder, a pipe, a folder that is not there, and where writing is not allowed."""
        path = super().convert(value, param, ctx)
        if problem := _problem(path):
            self.fail(f"a file that can be written ({problem})", param, ctx)
        return path


class OutputFolder(UserPath):
    """A path with `~` expanded of a folder that is there and can be written, or that can be made."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path; fails for a file, and where the folder that is to hold it is none or cannot be written."""
        path = super().convert(value, param, ctx)
        there = next((each for each in (path, *path.absolute().parents) if is_there(each)), Path("/"))
        if not there.is_dir():
            self.fail(f"a folder ({there} is none)", param, ctx)
        if not os.access(there, os.W_OK):
            self.fail(f"a folder that can be written ({there} cannot be)", param, ctx)
        return path


OUTPUT = OutputFile()
OUTPUT_FOLDER = OutputFolder(file_okay=False)


def write_output(path: Path, text: str) -> None:
    """Write `text` without secrets. Raises ConfigError when it cannot be written after all."""
    try:
        write_whole(path, redact_text(text))
    except OSError as error:
        needs = f"a file that can be written ({error.strerror})"
        raise ConfigError(str(path), got="an error", needs=needs, hint="another file") from error


def _problem(path: Path) -> str | None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        parent = path.absolute().parent
        if not parent.is_dir():
            return f"there is no folder {parent}"
        return None if os.access(parent, os.W_OK) else f"{parent} cannot be written to"
    except (OSError, ValueError) as error:  # such as a name that is too long, or a file in the place of a folder
        return str(getattr(error, "strerror", None) or error)
    if not stat.S_ISREG(mode):
        return "it is a folder" if stat.S_ISDIR(mode) else "it is no regular file"
    return None if os.access(path, os.W_OK) else "permission denied"
