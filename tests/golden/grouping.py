"""How the references cut tokens into groups, as integers; the product groups whole sequences.

None stands for what the reference refuses.
"""

from __future__ import annotations

from typing import NamedTuple


class Groups(NamedTuple):
    """`number` groups of `size` tokens."""

    number: int
    size: int


def mesh_tf_groups(tokens: int, group_size: int, mesh: int = 1) -> Groups | None:
    """From max(1, tokens // group_size) upwards, the first multiple of `mesh` that divides `tokens`."""
    if tokens % mesh:
        return None
    count = max(1, tokens // group_size)
    while count % mesh or tokens % count:
        count += 1
    return Groups(count, tokens // count)


def flaxformer_groups(tokens: int, group_size: int, experts: int, replicas: int = 1) -> Groups | None:
    """The same from max(tokens // group_size, experts * replicas), in multiples of experts * replicas.

    Where there is none up to `tokens`, every token is a group, unless the search started beyond.
    """
    multiple = experts * replicas
    count = max(tokens // group_size, multiple)
    while count < tokens and (tokens % count or count % multiple):
        count += 1
    return Groups(count, tokens // count) if tokens % count == 0 else None


def flaxformer_padding(batch: int, length: int, multiple: int) -> tuple[int, int]:
    """Batch and length after flaxformer's layer has padded the one that takes fewer tokens, in doubt the length."""
    rows, columns = batch, length
    while rows * length % multiple:
        rows += 1
    while batch * columns % multiple:
        columns += 1
    more_rows, more_columns = (rows - batch) * length, (columns - length) * batch
    return (rows, length) if more_rows < more_columns else (batch, columns)
