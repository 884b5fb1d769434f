"""The dense model on two tensor ranks is the model on one."""

from __future__ import annotations

import pytest

from tests.model.layouts import Layout, assert_equals_one_process
from tests.model.t5.build import run_config

NOISE = {"dropout": 0.1, "attention_dropout": 0.1}


@pytest.mark.parametrize("kind", ["relu_tied", "gated_untied_noise_recompute"])
def test_two_tensor_ranks_equal_one_process(kind: str) -> None:
    if kind == "relu_tied":
        cfg = run_config(recompute=False)
    else:
        cfg = run_config(ffn="gated_gelu", tie_embeddings=False, **NOISE)
    assert_equals_one_process(Layout(world=2, tp=2), cfg)


def test_tensor_and_data_parallel_with_accumulation() -> None:
    assert_equals_one_process(Layout(world=4, tp=2, accumulation=2), run_config(**NOISE))
