"""Texts on the command line of `fill` and `generate`, and results printed so that each is one line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from conf.errors import ConfigError
from conf.safety.regular import read_regular
from launch.commands.parameters import FILE, option

_LONGEST = 1_000_000  # characters of a text: far more than any model reads


def takes_texts(meaning: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: the function gets `text`, `file` (for `read_texts`) and `as_json`."""
    where = "none: one a line, from --file or standard input"
    options = (
        click.argument(
            "text", nargs=-1, metavar="[TEXT]...", help=f"{meaning}; behind -- if one begins with -; {where}"
        ),
        option("--file", type=FILE, metavar="FILE", help="read texts from this file, one a line"),
        option("--json", "as_json", is_flag=True, help="print one JSON object for each text"),
    )

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for add in reversed(options):
            function = add(function)
        return function

    return decorate


def read_texts(texts: Sequence[str], file: Path | None) -> list[str]:
    """Texts from the command line, else the lines that are not blank of the file, else of standard input.

    Raises ConfigError where there are none, or bytes that are not UTF-8.
    """
    found = list(texts) or _lines(file)
    for text in found:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ConfigError("TEXT", got=repr(text), needs="UTF-8 text", hint="another encoding of it") from error
    return found


def _lines(file: Path | None) -> list[str]:
    """Lines end as those of text files do that are trained on: with a line feed, CR LF or CR."""
    try:
        content = read_regular(file).decode() if file else sys.stdin.read()
    except (OSError, UnicodeDecodeError) as error:
        got = str(file) if file else "standard input"
        raise ConfigError("--file", got=got, needs=f"readable UTF-8 text ({error})", hint="another file") from error
    if "\0" in content:
        got = str(file) if file else "standard input"
        needs = f"UTF-8 text (byte 0x00 at character {content.index(chr(0)) + 1} is no text)"
        raise ConfigError("--file", got=got, needs=needs, hint="`iconv -f UTF-16LE -t UTF-8`, if it is that")
    content = content.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if not (lines := [line for line in content.split("\n") if line.strip()]):
        raise ConfigError("TEXT", got="nothing", needs="at least one line of text", hint="'The <mask> sat on the mat'")
    if (longest := max(lines, key=len)) and len(longest) > _LONGEST:
        got = f"a line of {len(longest):,} characters, the {lines.index(longest) + 1}. with text"
        raise ConfigError("--file", got=got, needs=f"texts of at most {_LONGEST:,}", hint="shorter lines")
    return lines


def visible(text: str) -> str:
    """`text` on one line: line breaks and whatever else cannot be seen as in Python's literals, backslashes doubled."""
    return "".join(letter if letter.isprintable() and letter != "\\" else repr(letter)[1:-1] for letter in text)
