"""How many tokens of text a window holds, and how many inputs and targets a task makes of them."""

from __future__ import annotations

from typing import NamedTuple


class Lengths(NamedTuple):
    """Token counts of one full window, EOS included on either side; `inputs` is at most `data.encoder_length`."""

    raw: int  # tokens of text
    inputs: int
    targets: int
