"""Two routers that the project does not have, each a file and a row: what adding one takes (docs/extending.md)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from conf.routing.routers import ROUTERS, Form, Matrix, RouterRow

TOYS = {
    "toy_hash": RouterRow(
        module="tests.model.moe.routers.toy_hash",
        under={"mesh_tf": Form()},
        matrices=(),
        needs_ids=True,
    ),
    "toy_noisy": RouterRow(
        module="tests.model.moe.routers.toy_noisy",
        under={"mesh_tf": Form()},
        matrices=(Matrix(name="weight"), Matrix(name="spread", init="zeros")),
        state=("bias",),
        noise=("toy_radius", "toy_angle"),
    ),
}


@contextmanager
def toys() -> Iterator[None]:
    """Both are routers like any other meanwhile."""
    ROUTERS.update(TOYS)
    try:
        yield
    finally:
        for name in TOYS:
            del ROUTERS[name]
