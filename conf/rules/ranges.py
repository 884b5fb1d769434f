"""Checks of one value at a time that the sections' checks are made of."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterator
from typing import Literal

from conf.errors import ConfigError


def at_least(field: str, value: float, least: int) -> Iterator[ConfigError]:
    """`value` >= `least`."""
    if value < least:
        yield ConfigError(field, got=value, needs=f"at least {least}", hint=f"{field}={least}")


def positive(field: str, value: float, usual: float) -> Iterator[ConfigError]:
    """`value` > 0; `usual` is the value to try."""
    if value <= 0:
        yield ConfigError(field, got=value, needs="a number above 0", hint=f"{field}={usual}")


def share(
    field: str, value: float, usual: float, *, upper: Literal["included", "excluded"] = "excluded"
) -> Iterator[ConfigError]:
    """`value` in [0, 1), or in [0, 1]."""
    if value < 0 or value > 1 or (value == 1 and upper == "excluded"):
        bracket = "]" if upper == "included" else ")"
        yield ConfigError(field, got=value, needs=f"a number in [0, 1{bracket}", hint=f"{field}={usual}")


def one_of(field: str, value: str, choices: Collection[str]) -> Iterator[ConfigError]:
    """`value` is a row of a table; the most similar one is the value to try."""
    if value not in choices:
        like = difflib.get_close_matches(value, choices, n=1, cutoff=0.4) or list(choices)
        yield ConfigError(field, got=value, needs="one of " + ", ".join(choices), hint=f"{field}={like[0]}")


def divisors(number: int) -> list[int]:
    """Every divisor, ascending."""
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def listed(numbers: list[int], *, most: int = 12) -> str:
    """Numbers for a message: all of them, or the first ones and an ellipsis."""
    shown = ", ".join(str(n) for n in numbers[:most])
    return shown + (", ..." if len(numbers) > most else "")


def nearest(number: int, legal: list[int]) -> int:
    """The legal value closest to `number`."""
    return min(legal, key=lambda n: (abs(n - number), n))
