"""The expert layer in one process: against loops, its modes, noise and recomputation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from parallel.layers.sharding import cast_module, spec_of
from tests.model.moe.build import (
    BATCH,
    D_MODEL,
    LENGTH,
    Variant,
    batch,
    build_layer,
    layer_noise,
    layer_of,
    model_config,
    moe_config,
)
from tests.model.moe.oracle import naive_layer, naive_route

NOISE = layer_noise(torch.arange(BATCH))


@pytest.mark.parametrize("group_sequences", [1, 2, 8])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_equals_naive_layer_with_all_gradients(group_sequences, mode):
    v = Variant(group_sequences=group_sequences, defects="reproduced")
    layer = build_layer(v)
    x, real, cotangent = batch(v)
    x.requires_grad_()
    y, routing = layer(x, real, mode=mode, noise=None)
    (y * cotangent).sum().backward()
    ours = [x.grad.clone(), *(p.grad.clone() for p in (layer.router.weight, layer.experts.wi, layer.experts.wo))]
    x.grad = None
    layer.zero_grad()
    shape = (BATCH // group_sequences, group_sequences * LENGTH)
    capacity = layer.rules.capacity.slots(shape[1], train=mode == "train")
    weights = (layer.router.weight, layer.experts.wi, layer.experts.wo)
    want = naive_layer(x.view(*shape, D_MODEL), real.view(shape), *weights, capacity)
    torch.testing.assert_close(y, want.view_as(y), rtol=1e-12, atol=1e-12)
    (want.view_as(y) * cotangent).sum().backward()
    for a, b in zip(ours, [x.grad, *(p.grad for p in weights)], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
    decided = naive_route(x.detach().view(*shape, D_MODEL), real.view(shape), weights[0].detach(), capacity)
    assert routing.aux_loss.item() == pytest.approx(decided.aux, rel=1e-12)
    assert routing.z_sum.item() == pytest.approx(decided.z_sum, rel=1e-12)
    assert int(routing.stats.kept_E.sum()) == len(decided.slot)


def test_dropped_tokens_and_padding_give_exactly_zero():
    v = Variant(to_one_expert=True, capacity_factor=2.0)
    x, real, _ = batch(v)
    y, routing = build_layer(v)(x, real, mode="train", noise=None)
    nonzero = y.abs().sum(-1) > 0
    assert not bool((nonzero & ~real).any())
    capacity = int(LENGTH * 2.0 / 4)
    assert nonzero.sum(1).tolist() == real.sum(1).clamp(max=capacity).tolist()
    assert int(routing.stats.load_E[1]) == int(real.sum())


def test_no_drop_keeps_every_token_whatever_the_batch():
    v = Variant(group_sequences=4, to_one_expert=True, jitter=0.1)
    layer = build_layer(v)
    x, real, _ = batch(v)
    whole, _ = layer(x, real, mode="no_drop", noise=NOISE)
    assert torch.equal(whole.any(-1), real)
    alone = torch.cat([layer(x[i : i + 1], real[i : i + 1], mode="no_drop", noise=None)[0] for i in range(BATCH)])
    torch.testing.assert_close(whole, alone, rtol=1e-13, atol=1e-13)


def test_jitter_reaches_the_router_only_and_only_in_training():
    v = Variant(jitter=0.3, capacity_factor=4.0)
    layer, still = build_layer(v), build_layer(replace(v, jitter=0.0))
    x, real, _ = batch(v)
    noisy, _ = layer(x, real, mode="train", noise=NOISE)
    clean, _ = still(x, real, mode="train", noise=NOISE)
    assert not torch.equal(noisy, clean)
    for mode, noise in (("eval", NOISE), ("no_drop", NOISE), ("train", None)):
        torch.testing.assert_close(layer(x, real, mode=mode, noise=noise)[0], still(x, real, mode=mode, noise=None)[0])
    # With one expert and gate 1 the router has no say: had noise touched the experts' input, y would differ.
    one = replace(v, experts=1)
    with_noise, _ = build_layer(one)(x, real, mode="train", noise=NOISE)
    without, _ = build_layer(one)(x, real, mode="train", noise=None)
    assert torch.equal(with_noise, without)


def test_noise_does_not_depend_on_the_grouping_and_dropout_is_unbiased_in_scale():
    loose = {"capacity_factor": 4.0, "jitter": 0.2}
    x, real, _ = batch(Variant())
    small, _ = build_layer(Variant(group_sequences=1, **loose))(x, real, mode="train", noise=NOISE)
    large, _ = build_layer(Variant(group_sequences=4, **loose))(x, real, mode="train", noise=NOISE)
    torch.testing.assert_close(small, large, rtol=1e-13, atol=1e-13)
    layer = build_layer(Variant(expert_dropout=0.25))
    with torch.no_grad():
        draws = [layer(x, real, mode="train", noise=layer_noise(NOISE.rows_B, step=step))[0] for step in range(200)]
        clean, _ = layer(x, real, mode="train", noise=None)
    assert float((torch.stack(draws).mean(0) - clean).norm() / clean.norm()) < 0.1
    assert not torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0], layer(x, real, mode="train", noise=layer_noise(NOISE.rows_B, step=0))[0].detach())


def test_recomputation_gives_the_same_gradients_and_counts_losses_once():
    v = Variant(jitter=0.1, expert_dropout=0.2)
    x, real, cotangent = batch(v)
    results = []
    for recompute in (False, True):
        layer, x_in = build_layer(v), x.clone().requires_grad_()

        def call(a, layer=layer):
            return layer(a, real, mode="train", noise=NOISE)

        y, routing = checkpoint(call, x_in, use_reentrant=False) if recompute else call(x_in)
        ((y * cotangent).sum() + routing.aux_loss + routing.z_sum).backward()
        results.append((y.detach(), x_in.grad, layer.router.weight.grad, layer.experts.wi.grad, routing.stats.aux))
    for plain, again in zip(*results, strict=True):
        assert torch.equal(plain, again)


def test_experts_without_tokens_get_zero_gradients():
    v = Variant(to_one_expert=True)
    layer = build_layer(v)
    x, real, _ = batch(v)
    layer(x, real, mode="train", noise=None)[0].sum().backward()
    assert torch.equal(layer.experts.wi.grad[2], torch.zeros_like(layer.experts.wi.grad[2]))
    assert float(layer.experts.wi.grad[1].abs().sum()) > 0


class SeenOps(TorchDispatchMode):
    """Names of all operators that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device_or_adds_into_rows():
    v = Variant(jitter=0.1, expert_dropout=0.1)
    # Tensors on the meta device have no values: whatever needs one on the host raises.
    layer = layer_of(model_config(), moe_config(v)).to("meta")
    x = torch.empty(BATCH, LENGTH, D_MODEL, device="meta", requires_grad=True)
    real = torch.empty(BATCH, LENGTH, device="meta", dtype=torch.bool)
    with SeenOps() as seen:
        y, routing = layer(x, real, mode="train", noise=replace(NOISE, rows_B=NOISE.rows_B.to("meta")))
        (y.sum() + routing.aux_loss + routing.z_sum).backward()
    assert layer.experts.wi.grad.shape == layer.experts.wi.shape
    assert {"bmm", "index_select", "cumsum"} <= seen.names
    adding = ("scatter_add", "index_add", "index_put", "scatter_reduce", "_local_scalar_dense", "nonzero")
    assert not [name for name in seen.names if name.startswith(adding)]


def test_mixed_precision_keeps_the_router_fp32():
    layer = layer_of(model_config("gated_gelu"), moe_config(Variant()), stack="decoder")
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    cast_module(layer, torch.bfloat16)
    x, real, _ = batch(Variant())
    x = x.bfloat16().requires_grad_()
    y, routing = layer(x, real, mode="train", noise=NOISE)
    (y.float().sum() + routing.aux_loss).backward()
    assert {n: p.dtype for n, p in layer.named_parameters()} == {
        "router.weight": torch.float32, "experts.wi_0": torch.bfloat16, "experts.wi_1": torch.bfloat16,
        "experts.wo": torch.bfloat16,
    }  # fmt: skip
    assert layer.router.weight.grad.dtype == torch.float32
    assert y.dtype == x.grad.dtype == torch.bfloat16
    assert routing.aux_loss.dtype == routing.z_sum.dtype == torch.float32
    assert not spec_of(layer.router.weight).is_expert
    assert spec_of(layer.experts.wo).is_expert


def test_a_batch_holds_whole_groups():
    x, real, _ = batch(Variant())
    with pytest.raises(AssertionError):
        build_layer(Variant(group_sequences=3))(x, real, mode="train", noise=None)
