"""Whether rectangles make up a whole tensor."""

from __future__ import annotations

import math
from itertools import pairwise, product

_CELLS, _CELLS_A_BOX = 10_000, 16


def tiling_problem(shape: tuple[int, ...], boxes: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> str | None:
    """Why boxes, as (offsets, sizes), do not cover a tensor exactly once; None if they do.

    The boxes' edges cut the tensor into cells; every cell must be taken once. A regular grid has one cell a box, and
    what is far from one is refused before it takes long.
    """
    for offsets, sizes in boxes:
        if any(o < 0 or o + n > whole for o, n, whole in zip(offsets, sizes, shape, strict=True)):
            return f"piece {list(sizes)} at {list(offsets)} leaves the tensor of shape {list(shape)}"
    edges = [
        sorted({0, whole} | {o[d] for o, _ in boxes} | {o[d] + n[d] for o, n in boxes}) for d, whole in enumerate(shape)
    ]
    cells = math.prod(len(row) - 1 for row in edges)
    if cells > _CELLS_A_BOX * len(boxes) + _CELLS:
        return f"{len(boxes)} pieces cut it into {cells:,} cells, which no layout does"
    place = [{edge: i for i, edge in enumerate(row)} for row in edges]
    taken: set[tuple[int, ...]] = set()
    for offsets, sizes in boxes:
        spans = (range(place[d][o], place[d][o + n]) for d, (o, n) in enumerate(zip(offsets, sizes, strict=True)))
        for cell in product(*spans):
            if cell in taken:
                return f"pieces overlap at {[edges[d][i] for d, i in enumerate(cell)]}"
            taken.add(cell)
    for cell in product(*(range(len(list(pairwise(row)))) for row in edges)):
        if cell not in taken:
            return f"no rank gave the part at {[edges[d][i] for d, i in enumerate(cell)]} of shape {list(shape)}"
    return None
