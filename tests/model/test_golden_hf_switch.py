"""Whole expert models against recorded runs of Hugging Face Switch (../shared/golden/hf_switch).

Gradients are those of the total loss of version 5.23.0, whose auxiliary loss counts choices before capacity as ours
does. The library joins the logits of all sparse layers of a stack before that loss, so router losses and gradients are
compared where a stack has one sparse layer. `step3_layout` is left out: its sparse layers (1, 4, ..) are not ours.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.generate import GenerateOptions, generate
from model.moe.types import LayerRouting
from tests.model.golden import GOLDEN, Case, assert_close, load_case, ours_of

FOLDER, OLD, NEW = "hf_switch", "4.57.6", "5.23.0"
ONE_SPARSE_LAYER = ["step2_e4_tied", "step2_e8_drops", "one_expert_collapse"]
CASES = [*ONE_SPARSE_LAYER, "step2_e4_l4_drops_untied", "step1_all_sparse_e4"]
DTYPES = [torch.float32, torch.float64]

pytestmark = pytest.mark.skipif(
    not (GOLDEN / FOLDER).is_dir(), reason="../shared/golden/hf_switch is not on this machine"
)


def recorded(case: Case, key: str) -> Tensor:
    """An array of 5.23.0, whose file leaves out what equals 4.57.6."""
    return case.outputs[NEW].get(key, case.outputs[OLD][key])


def auxiliary(layer: LayerRouting) -> Tensor:
    return layer.aux_loss / layer.stats.groups


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_hidden_states_logits_and_loss(name: str, dtype: torch.dtype) -> None:
    case = load_case(FOLDER, name, dtype)
    for stack in ("encoder", "decoder"):
        states = zip(case.hidden_states(stack), recorded(case, f"{stack}_hidden_states"), strict=True)
        for index, (one, other) in enumerate(states):
            assert_close(one, other, 2e-5, f"{stack} hidden state {index}")
    assert_close(case.logits(), recorded(case, "logits"), 2e-5, "logits")
    loss = case.run().token_loss_BT.sum() / (case.targets_BT != 0).sum()
    assert loss.item() == pytest.approx(case.scalars[NEW]["loss_lm_only"], rel=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ONE_SPARSE_LAYER)
def test_router_losses_and_gradients(name: str, dtype: torch.dtype) -> None:
    case = load_case(FOLDER, name, dtype)
    output, scalars = case.run(), case.scalars[NEW]
    loss = output.token_loss_BT.sum() / (case.targets_BT != 0).sum()
    for stack, tokens_BL in (("encoder", case.tokens_BL), ("decoder", case.targets_BT)):
        (layer,) = getattr(output, f"{stack}_routing")
        z = layer.z_sum / tokens_BL.numel()  # the library's mean is over padding as well
        assert z.item() == pytest.approx(scalars[f"{stack}_z_loss"], rel=1e-5)
        assert auxiliary(layer).item() == pytest.approx(scalars[f"{stack}_aux_loss"], rel=1e-5)
        loss = loss + 0.001 * z + 0.01 * auxiliary(layer)
    assert loss.item() == pytest.approx(scalars["loss"], rel=1e-5)
    loss.backward()
    grads = {key: p.grad for key, p in case.module.named_parameters()}
    keys = [key for key in case.outputs[OLD] if key.startswith("grad:")]
    assert len(keys) >= 10
    for key in keys:
        assert_close(ours_of(grads, key.removeprefix("grad:")), recorded(case, key), 1e-4, key)  # type: ignore[arg-type]


def test_greedy_decoding_without_drops() -> None:
    case = load_case(FOLDER, "step2_e4_tied", torch.float32)  # capacity above the length: no token is dropped
    recorded_BT = case.outputs[OLD]["greedy"].long()
    options = GenerateOptions(max_length=recorded_BT.shape[1] - 1)
    assert generate(case.module, case.tokens_BL, options=options).tokens_BT.tolist() == recorded_BT[:, 1:].tolist()
