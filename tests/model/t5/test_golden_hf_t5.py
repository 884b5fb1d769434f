"""The dense model against recorded runs of Hugging Face T5 (../shared/golden/hf_t5)."""

from __future__ import annotations

import pytest

from tests.golden.reader import GOLDEN
from tests.golden.run_hf import compare_hf_t5

FOLDER = GOLDEN / "hf_t5"


@pytest.mark.skipif(not FOLDER.is_dir(), reason="../shared/golden/hf_t5 is not on this machine")
def test_every_recorded_array_and_scalar() -> None:
    compared = list(compare_hf_t5(FOLDER))
    assert [(case, comparison) for case, comparison in compared if not comparison.holds] == []
    arrays = {comparison.array.partition(":")[0] for _, comparison in compared}
    assert arrays >= {"logits", "loss", "encoder_hidden_states", "grad", "greedy"}
    assert len(compared) > 300
