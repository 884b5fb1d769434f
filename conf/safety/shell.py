"""Values in lines of a shell and of `sbatch`: the one place where they are quoted, and what is refused there."""

from __future__ import annotations

import os
import re
import shlex
import unicodedata
from collections.abc import Iterable

from conf.errors import ConfigError

_REFUSED = ("Cc", "Cs", "Zl", "Zp")  # control characters, halves of characters (bytes that are not UTF-8), line ends


def word(value: str | os.PathLike[str]) -> str:
    """`value` as one word of a shell; a path that begins with a dash, and would be an option, gets ./ before it."""
    text = os.fspath(value)
    return shlex.quote(f"./{text}" if text.startswith("-") and not isinstance(value, str) else text)


def line(words: Iterable[str | os.PathLike[str]]) -> str:
    """A command of these words."""
    return " ".join(map(word, words))


def directive(value: str) -> str:
    r"""`value` as `sbatch` reads it behind #SBATCH, where a backslash escapes within quotes as well: it alone is used.

    Source: `_get_argument` of Slurm's src/sbatch/opt.c.
    """
    return re.sub(r"[^\w@%+=:,./-]", r"\\\g<0>", value)


def control_character(field: str, text: str) -> ConfigError | None:
    """The error for a text that no line of a script can hold; None for any other text."""
    for place, character in enumerate(text):
        if unicodedata.category(character) in _REFUSED:
            return ConfigError(
                field,
                got=text,
                needs=f"text without control characters and of UTF-8 alone: U+{ord(character):04X} is at {place}",
                hint=f"{field} without it",
            )
    return None
