"""A second task, as docs/extending.md adds one: say a window backwards."""

from __future__ import annotations

import numpy as np

from conf.tasks.lengths import Lengths
from conf.tasks.table import TASKS, TaskRow
from data.batch import EOS_ID
from data.tasks.task import Pairs, Task, TokenKind


def lengths(data):
    raw = data.encoder_length - 1
    return Lengths(raw=raw, inputs=raw + 1, targets=raw + 1)


def make(windows, keys, data, vocabulary):
    inputs_BL = np.zeros((len(windows), data.encoder_length), dtype=np.int64)
    targets_BT = np.zeros((len(windows), data.decoder_length), dtype=np.int64)
    for row, window in enumerate(windows):
        if len(window):
            inputs_BL[row, : len(window) + 1] = [*window, EOS_ID]
            targets_BT[row, : len(window) + 1] = [*window[::-1], EOS_ID]
    return Pairs(inputs_BL, targets_BT)


def kinds(vocabulary):
    return {"frequent": TokenKind(2, vocabulary.size // 2)}


TASK = Task(make=make, kinds=kinds, shown="windows said backwards:")


def register() -> None:
    """The row, in this process."""
    TASKS["reversal"] = TaskRow(module=__name__, lengths=lengths)
