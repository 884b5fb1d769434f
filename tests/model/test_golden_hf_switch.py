"""Whole expert models, single layers and layouts against recorded runs of Hugging Face Switch (../shared/golden)."""

from __future__ import annotations

import pytest

from tests.golden.reader import GOLDEN
from tests.golden.run_hf import compare_hf_switch

FOLDER = GOLDEN / "hf_switch"


@pytest.mark.skipif(not FOLDER.is_dir(), reason="../shared/golden/hf_switch is not on this machine")
def test_every_recorded_array_scalar_and_table_row() -> None:
    compared = list(compare_hf_switch(FOLDER))
    assert [(case, comparison) for case, comparison in compared if not comparison.holds] == []
    arrays = {comparison.array.partition(":")[0] for _, comparison in compared}
    assert arrays >= {"logits", "loss", "encoder_aux_loss", "dispatch", "grad", "greedy", "sparse_decoder_indices"}
    assert {case.rpartition("_")[2] for case, _ in compared} >= {"bf16"}
    assert len(compared) > 1000
