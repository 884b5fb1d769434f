"""Rows are found by their tokens, and a noise key that is keyed by anything else is told."""

import torch

from measure.verify.observe.batches import global_rows
from measure.verify.observe.rows import RowFinder
from parallel.rng import NoiseKey
from tests.measure.verify.tiny import plan

CFG = plan("tp=1", ranks=1).base


def test_rows_and_what_is_wrong_with_a_key():
    finder, rows = RowFinder(CFG), torch.tensor([5, 2, 11])
    for step in (0, 3):
        finder.open(step)
        encoder, targets = (torch.from_numpy(array)[rows] for array in global_rows(CFG, step))
        finder.begin(encoder, targets)
        right = NoiseKey(seed=CFG.seed, step=step, rows_B=rows)
        assert torch.equal(finder.rows(right), rows)
        assert finder.wrong(right) == []
        wrong = NoiseKey(seed=CFG.seed + 1, step=step + 1, rows_B=rows - 2)
        assert finder.wrong(wrong) == ["seed", "step", "rows"]
        assert torch.equal(finder.rows(wrong), rows)
