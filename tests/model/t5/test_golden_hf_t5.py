"""The dense model against recorded runs of Hugging Face T5 (../shared/golden/hf_t5)."""

from __future__ import annotations

import pytest
import torch

from model.generate import GenerateOptions, generate
from tests.model.golden import GOLDEN, Case, assert_close, load_case, our_name

FOLDER, VERSION = "hf_t5", "4.57.6"
CASES = ["v10_relu_tied", "v11_gated_gelu_untied", "v11_gated_gelu_long"]

pytestmark = pytest.mark.skipif(not (GOLDEN / FOLDER).is_dir(), reason="../shared/golden/hf_t5 is not on this machine")


@pytest.fixture(params=[(name, dtype) for name in CASES for dtype in (torch.float32, torch.float64)], ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    return load_case(FOLDER, *request.param)


def test_hidden_states(case: Case) -> None:
    for stack in ("encoder", "decoder"):
        ours, recorded = case.hidden_states(stack), case.outputs[VERSION][f"{stack}_hidden_states"]
        for index, (one, other) in enumerate(zip(ours, recorded, strict=True)):
            assert_close(one, other, 2e-5, f"{stack} hidden state {index}")


def test_logits(case: Case) -> None:
    assert_close(case.logits(), case.outputs[VERSION]["logits"], 2e-5, "logits")


def test_loss_and_gradients(case: Case) -> None:
    loss = case.run().token_loss_BT.sum() / (case.targets_BT != 0).sum()
    loss.backward()
    assert loss.item() == pytest.approx(case.scalars[VERSION]["loss"], rel=1e-5)
    grads = {name: p.grad for name, p in case.module.named_parameters()}
    for name, norm in case.scalars[VERSION]["grad_norms"].items():
        if "embed_tokens" not in name:
            assert grads[our_name(name)].norm().item() == pytest.approx(norm, rel=1e-4), name
    compared = 0
    for key, recorded in case.outputs[VERSION].items():
        name = key.removeprefix("grad:")
        if key.startswith("grad:") and "embed_tokens" not in name:
            assert_close(grads[our_name(name)], recorded, 1e-4, key)
            compared += 1
    assert compared >= 8


def test_greedy_decoding(case: Case) -> None:
    recorded_BT = case.outputs[VERSION]["greedy"].long()
    options = GenerateOptions(mode="greedy", max_length=recorded_BT.shape[1] - 1)
    result = generate(case.module, case.tokens_BL, options=options)
    assert result.tokens_BT.tolist() == recorded_BT[:, 1:].tolist()
