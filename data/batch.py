"""What the loader hands to the trainer: token arrays of one step on one data-parallel rank.

Shape suffixes: B rows of a micro-batch, L input length, T target length.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PAD_ID = 0
EOS_ID = 1
UNK_ID = 2

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatch:
    """Rows of one micro-batch; `rows_B` are their places in the step's global batch (ADR 001)."""

    inputs_BL: IntArray
    targets_BT: IntArray
    rows_B: IntArray

    @property
    def real_inputs(self) -> int:
        """Input tokens that are not padding."""
        return int(np.count_nonzero(self.inputs_BL))

    @property
    def real_targets(self) -> int:
        """Target tokens that are not padding."""
        return int(np.count_nonzero(self.targets_BT))


@dataclass(frozen=True, kw_only=True, slots=True)
class StepBatch:
    """One optimizer step of one data-parallel rank: `accumulation` micro-batches."""

    step: int
    epoch: (
        float  # passes over the training text when this step ends; for streams, whole passes of the rank's first lane
    )
    micro: tuple[MicroBatch, ...]

    @property
    def real_inputs(self) -> int:
        """Input tokens of this rank that are not padding."""
        return sum(batch.real_inputs for batch in self.micro)

    @property
    def real_targets(self) -> int:
        """Target tokens of this rank that are not padding."""
        return sum(batch.real_targets for batch in self.micro)
