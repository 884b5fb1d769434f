"""What the checks of flaxformer's recordings compute besides routing, where a recorder's dtypes decide the digits."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.golden.dispatch import Coo
from tests.golden.run_flaxformer import RouterBias, layer_metrics


def metrics(act: torch.dtype, *, real: int, ignore: bool, rows: int = 307) -> dict[str, float]:
    """Metrics of a group of 512 tokens, of which the first `rows` are dispatched with a gate of 0.25 each."""
    index = torch.stack((torch.zeros(rows), torch.arange(rows), torch.zeros(rows), torch.arange(rows)), 1).long()
    ours = SimpleNamespace(
        config={"ignore_padding_tokens": ignore, "router": "tokens_choose_masked", "k": 1, "experts": 2},
        coo=Coo(index, torch.full((rows,), 0.25)), gates_GSK=torch.full((1, rows, 1), 0.25), combine=act, act=act,
        real_GS=torch.arange(512).unsqueeze(0) < real, G=1, S=512, capacity=512,
    )  # fmt: skip
    return {name: float(value) for name, value in layer_metrics(ours).items()}  # type: ignore[arg-type]


def test_metrics_of_ignored_padding_have_the_precision_of_the_activations():
    """307 real tokens are 308 in bf16, in which the reference counts them: it reports 1/256 left behind of none."""
    assert metrics(torch.float32, real=307, ignore=True)["fraction_tokens_left_behind"] == 0
    found = metrics(torch.bfloat16, real=307, ignore=True)
    assert found["fraction_tokens_left_behind"] == 0.00390625
    assert found["router_confidence"] == 0.25
    assert found["expert_usage"] == pytest.approx(307 / 1024, rel=1e-7)
    assert metrics(torch.bfloat16, real=307, ignore=False)["fraction_tokens_left_behind"] == pytest.approx(205 / 512)


def test_a_layer_of_padding_alone_has_metrics_that_are_no_numbers_instead_of_an_error():
    assert metrics(torch.float32, real=0, ignore=True, rows=2)["fraction_tokens_left_behind"] == float("-inf")
    nothing = metrics(torch.float32, real=0, ignore=True, rows=0)
    assert nothing["fraction_tokens_left_behind"] != nothing["fraction_tokens_left_behind"]
    assert nothing["router_confidence"] != nothing["router_confidence"]


def test_a_bias_is_added_to_rounded_logits_and_rounded_again():
    logits, bias = torch.tensor([1.0 + 1 / 128]).bfloat16(), torch.tensor([1 / 200])
    wanted = (logits.float() + bias.bfloat16().float()).bfloat16()
    assert torch.equal(RouterBias(bias).logits(logits), wanted)
    assert RouterBias(bias).logits(logits.float()).dtype == torch.float32
