"""Which rows of the global batch a rank's micro-batch holds, read off its tokens: what the noise says may be wrong.

Shape suffixes: B rows of the micro-batch, L encoder length, T decoder length.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from conf.schema import RunConfig
from measure.verify.observe.batches import global_rows
from parallel.rng import NoiseKey

Rows = Callable[[NoiseKey], Tensor]  # the rows of the present micro-batch, int64 [B] on its device


def rows_of_noise(noise: NoiseKey) -> Tensor:
    """The rows that the noise is keyed by."""
    return noise.rows_B


class RowFinder:
    """Finds rows of one step's global batch by their tokens, and tells what of a noise key is not as it should be."""

    def __init__(self, cfg: RunConfig) -> None:
        self._cfg, self._step = cfg, 0
        self._index: dict[bytes, int] = {}
        self._rows_B = torch.zeros(0, dtype=torch.int64)

    def open(self, step: int) -> None:
        """Take the batch of `step`."""
        self._step = step
        self._index = {_key(*row): i for i, row in enumerate(zip(*global_rows(self._cfg, step), strict=True))}

    def begin(self, inputs_BL: Tensor, targets_BT: Tensor) -> None:
        """Find the rows of a micro-batch. It must be of the step's batch."""
        tokens = zip(inputs_BL.cpu().numpy(), targets_BT.cpu().numpy(), strict=True)
        self._rows_B = torch.tensor([self._index[_key(*row)] for row in tokens], device=inputs_BL.device)

    def rows(self, noise: NoiseKey) -> Tensor:
        """`Rows` by the tokens."""
        return self._rows_B

    def wrong(self, noise: NoiseKey) -> list[str]:
        """What of the key differs from what the seed, the step and the tokens call for."""
        wanted = {"seed": noise.seed == self._cfg.seed, "step": noise.step == self._step}
        wanted["rows"] = torch.equal(noise.rows_B, self._rows_B)
        return [name for name, right in wanted.items() if not right]


def _key(encoder_L: np.ndarray, targets_T: np.ndarray) -> bytes:
    return encoder_L.tobytes() + targets_T.tobytes()
