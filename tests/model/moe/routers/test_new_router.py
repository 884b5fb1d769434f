"""A router is a file and a row: two that the project lacks run in a layer, on ranks and in a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from conf.compose import compose
from conf.derived.estimate import num_params
from conf.errors import ConfigError
from conf.routing.settings import moe_rules
from model.build import meta_model
from model.init import InitKey, initialise
from model.moe.layer import MoeLayer
from parallel.layers.experts import LocalExchange
from parallel.mesh.axes import single_process
from tests.model.moe.build import LENGTH, Outcome, Variant, batch, build_layer, token_ids
from tests.model.moe.ranks import Place, Variants, assert_equals_one_process, layers_on_rank
from tests.model.moe.routers.toys import toys
from tests.model.t5.build import MOE, make_batch, make_model

VARIANTS = (
    Variant(router="toy_hash", capacity_factor=2.0),
    Variant(router="toy_noisy", capacity_factor=2.0, group_sequences=2),
)
SMALL = ("model.num_encoder_layers=2", "model.num_decoder_layers=2", "model.d_model=16", "model.d_ff=24")


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    with toys():
        yield


def toy_layers_on_rank(
    rank: int, world: int, variants: Variants, tp: int, ep: int, etp: int
) -> list[tuple[Place, Outcome]]:
    with toys():
        return layers_on_rank(rank, world, variants, tp, ep, etp)


@pytest.mark.parametrize(("tp", "dp", "ep", "etp"), [(1, 2, 2, 1), (2, 1, 2, 1)])
def test_ids_two_matrices_and_noise_are_the_same_on_ranks(tp, dp, ep, etp):
    assert_equals_one_process(VARIANTS, tp, dp, ep, etp, on_rank=toy_layers_on_rank)


def test_state_decides_and_is_kept_beside_the_weights():
    layer = build_layer(Variant(router="toy_noisy", capacity_factor=4.0))
    assert set(layer.state_dict()) == {"router.weight", "router.spread", "router.bias", "experts.wi", "experts.wo"}
    x, real, _ = batch(Variant())
    _, free = layer(x, real, mode="eval", noise=None)
    assert int((free.stats.load_E > 0).sum()) > 1
    layer.router.bias[2] = 1e3
    _, biased = layer(x, real, mode="eval", noise=None)
    assert int(biased.stats.load_E[2]) == int(real.sum())
    assert not layer.router.bias.requires_grad


def test_ids_reach_the_layers_of_both_stacks_and_of_a_cached_step():
    experts = replace(MOE, router="toy_hash", capacity_factor=4.0, eval_capacity_factor=4.0)
    module, tokens = make_model(moe="switch", experts=experts, recompute=True), make_batch()
    inputs_BT = torch.nn.functional.pad(tokens.targets_BT[:, :-1], (1, 0))
    out = module(tokens.encoder_BL, tokens.targets_BT, mode="train", noise=None)
    real = {"encoder": tokens.encoder_BL[tokens.encoder_BL != 0], "decoder": inputs_BT[tokens.targets_BT != 0]}
    for stack, (layer,) in out.routing.items():
        assert torch.equal(layer.stats.load_E, torch.bincount(real[stack] % 4, minlength=4).float()), stack
    out.token_loss_BT.sum().backward()
    with torch.no_grad():
        encoded = module.encode(tokens.encoder_BL, mode="no_drop", noise=None)
        memory = module.memory(encoded.hidden_BLD, tokens.encoder_BL)
        decoding = module.start_decoding(tokens.encoder_BL, copies=1, max_length=3, mode="no_drop")
        ids_BT = inputs_BT[:, :3]
        steps = [decoding.next_logits(ids_BT[:, t]) for t in range(3)]
        every = torch.ones_like(ids_BT, dtype=torch.bool)
        whole = module.decoder(
            module.embed(ids_BT, "decoder"), every, memory, mode="no_drop", noise=None, ids_BL=ids_BT
        ).hidden_BLD
    want = module.logits(whole)[..., :100]
    torch.testing.assert_close(torch.stack(steps, 1), want, rtol=1e-10, atol=1e-10)


def test_a_layer_whose_router_reads_ids_refuses_to_run_without():
    x, real, _ = batch(Variant())
    with pytest.raises(AssertionError, match="toy_hash reads token ids"):
        build_layer(Variant(router="toy_hash"))(x, real, mode="eval", noise=None)


@pytest.mark.parametrize(("router", "matrices"), [("toy_hash", 0), ("toy_noisy", 2), ("switch", 1)])
def test_the_row_is_what_a_run_is_checked_and_counted_by(router, matrices):
    cfg = compose([*SMALL, f"moe.router={router}"])
    module = meta_model(cfg, single_process())
    assert sum(p.numel() for p in module.parameters()) == num_params(cfg.model, cfg.moe)
    (layer,) = [block.ff for block in module.encoder.layers if isinstance(block.ff, MoeLayer)]
    assert len(list(layer.router.parameters())) == matrices
    if router != "switch":
        with pytest.raises(ConfigError, match=f"got '{router}'; needs a router that moe.semantics=flaxformer defines"):
            compose([*SMALL, "moe=flaxformer", f"moe.router={router}"])


def test_a_layer_stands_alone_from_rules_and_sizes():
    rules = moe_rules(replace(MOE, router="toy_noisy"), "encoder")
    layer = MoeLayer(rules, d_model=6, d_ff=10, ffn="relu", exchange=LocalExchange())
    initialise(layer, single_process(), InitKey(seed=1, scale=0.1, rules=rules.init))
    assert not layer.router.spread.any(), "its row starts it at 0"
    assert layer.router.weight.std() > 0
    x = torch.randn(4, LENGTH, 6)
    y, routing = layer(x, token_ids()[:4] > 5, mode="train", noise=None)
    assert y.shape == x.shape
    (y.sum() + routing.aux_loss + routing.z_sum).backward()
    assert float(layer.router.weight.grad.abs().sum()) > 0
