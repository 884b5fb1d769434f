"""Which ids of a tokenizer are sentinels, without the tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Vocabulary(NamedTuple):
    """Ids in use, and those that are sentinels."""

    size: int
    sentinels: Sequence[int]  # id of <extra_id_k> at k


def appended(pieces: int, sentinels: int) -> Vocabulary:
    """T5's: sentinels behind the pieces, counting down from the last id."""
    size = pieces + sentinels
    return Vocabulary(size, range(size - 1, pieces - 1, -1))
