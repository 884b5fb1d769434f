"""The stand-alone expert layer against a loop over tokens, and how it behaves inside other people's models."""

import pytest
import torch
from torch import nn

from conf.errors import ConfigError, ConfigErrors
from model.moe.switch_layer import SwitchLayer

B, L, D, F, E = 3, 8, 16, 32, 4


def naive(layer: SwitchLayer, x_ND: torch.Tensor, factor: float) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Section 2.2 of the paper, token by token: output, auxiliary loss, dropped tokens."""
    weight, wi, wo = layer.layer.router.weight, layer.layer.experts.wi, layer.layer.experts.wo
    capacity = max(int(len(x_ND) * factor / E), 4)
    p_NE = (x_ND @ weight).softmax(-1)
    taken, outputs, dropped = [0] * E, [], 0
    for x_D, p_E in zip(x_ND, p_NE, strict=True):
        expert = int(p_E.argmax())
        if taken[expert] < capacity:
            outputs.append(p_E[expert] * (torch.relu(x_D @ wi[expert]) @ wo[expert]))
        else:
            outputs.append(torch.zeros_like(x_D))
            dropped += 1
        taken[expert] += 1
    f_E = torch.bincount(p_NE.argmax(-1), minlength=E) / len(x_ND)
    return torch.stack(outputs), E * (f_E * p_NE.mean(0)).sum(), dropped


@pytest.mark.parametrize(("mode", "factor"), [("train", 0.5), ("eval", 2.0)])
def test_it_is_the_paper_token_by_token(mode, factor):
    torch.manual_seed(1)
    layer = SwitchLayer(D, F, E, jitter=0.0, capacity_factor=0.5, eval_capacity_factor=2.0, aux_loss_weight=0.5)
    layer.train(mode == "train")
    x_BLD = torch.randn(B, L, D)
    y_BLD, losses = layer(x_BLD)
    wanted, aux, dropped = naive(layer, x_BLD.flatten(0, 1), factor)
    torch.testing.assert_close(y_BLD.flatten(0, 1), wanted)
    torch.testing.assert_close(losses.aux, 0.5 * aux)
    assert dropped == round(float(losses.dropped) * B * L)
    assert (dropped > 0) == (mode == "train")
    losses.total.backward()
    assert layer.layer.router.weight.grad.abs().sum() > 0


def test_several_layers_differ_and_a_seed_repeats_them():
    torch.manual_seed(3)
    one, two = SwitchLayer(D, F, E), SwitchLayer(D, F, E)
    assert not torch.equal(one.layer.experts.wi, two.layer.experts.wi)
    torch.manual_seed(3)
    again = SwitchLayer(D, F, E)
    assert torch.equal(one.layer.experts.wi, again.layer.experts.wi)
    assert torch.equal(
        SwitchLayer(D, F, E, seed=5).layer.router.weight, SwitchLayer(D, F, E, seed=5).layer.router.weight
    )


def test_padding_takes_no_slot_and_gives_nothing():
    layer = SwitchLayer(D, F, E).eval()
    x_BLD, real_BL = torch.randn(B, L, D), torch.arange(L).expand(B, L) < 5
    y_BLD, losses = layer(x_BLD, real_BL)
    assert torch.equal(y_BLD[~real_BL], torch.zeros(B * 3, D))
    assert torch.isclose(losses.load_E.sum(), torch.tensor(1.0))


@pytest.mark.parametrize("shape", [(L, D), (2, 3, L, D)])
def test_any_number_of_leading_dims(shape):
    layer, x = SwitchLayer(D, F, E).eval(), torch.randn(shape)
    y, _ = layer(x)
    assert torch.equal(y.reshape(-1, L, D), layer(x.reshape(-1, L, D))[0])


def test_the_router_stays_in_fp32():
    layer = SwitchLayer(D, F, E, seed=1).eval()
    x_BLD, before = torch.randn(B, L, D), layer.layer.router.weight.detach().clone()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x_BLD)[1].aux, layer(x_BLD.float())[1].aux)
    layer.bfloat16()
    assert layer.layer.experts.wi.dtype == torch.bfloat16
    assert torch.equal(layer.layer.router.weight, before)
    y_BLD, losses = layer(x_BLD.bfloat16())
    assert (y_BLD.dtype, losses.total.dtype) == (torch.bfloat16, torch.float32)


def test_noise_follows_torchs_generator_so_that_recomputation_repeats_it():
    layer, x_BLD = SwitchLayer(D, F, E, jitter=0.3, expert_dropout=0.5), torch.randn(B, L, D, requires_grad=True)
    torch.manual_seed(7)
    plain, _ = layer(x_BLD)
    (plain_grad,) = torch.autograd.grad(plain.square().sum(), x_BLD)
    assert not torch.equal(plain, layer(x_BLD)[0])
    torch.manual_seed(7)
    kept = torch.utils.checkpoint.checkpoint(lambda x: layer(x)[0], x_BLD, use_reentrant=False)
    (grad,) = torch.autograd.grad(kept.square().sum(), x_BLD)
    assert torch.equal(plain, kept)
    assert torch.equal(plain_grad, grad)


def test_it_is_part_of_a_model_like_any_module(tmp_path):
    model = nn.Sequential(nn.Linear(D, D), SwitchLayer(D, F, E, router="top_2", ffn="gated_gelu"))
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    other = nn.Sequential(nn.Linear(D, D), SwitchLayer(D, F, E, router="top_2", ffn="gated_gelu"))
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    x = torch.randn(2, L, D)
    assert torch.equal(model.eval()(x)[0], other.eval()(x)[0])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"capcity_factor": 1.0}, "try moe.capacity_factor"),
        ({"capacity_factor": -1.0}, "moe.capacity_factor: got -1.0"),
        ({"router": "nope"}, "moe.router: got 'nope'"),
        ({"semantics": "mine"}, "one of"),
        ({"top_k": 3}, "moe.top_k: got 3"),
    ],
)
def test_wrong_settings_are_named(settings, says):
    with pytest.raises((ConfigError, ConfigErrors)) as caught:
        SwitchLayer(D, F, E, **settings)
    assert says in str(caught.value)


def test_without_dropping_every_token_reaches_its_expert():
    layer = SwitchLayer(D, F, E, capacity="dropless", capacity_factor=0.1, seed=1)
    x = torch.randn(2, 6, D)
    y, losses = layer(x)
    assert float(losses.dropped) == 0
    assert bool(y.any(-1).all())
    with pytest.raises(ConfigError, match=r"moe\.capacity"):
        SwitchLayer(D, F, E, capacity="dropless", router="expert_choice")
