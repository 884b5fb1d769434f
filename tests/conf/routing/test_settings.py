"""Which routers a semantics has, their settings' ranges, and what an error says."""

import pytest

from conf.compose import compose
from conf.derived.estimate import forward_flops, num_active_params, num_params
from conf.derived.layers import STACKS, sparse_layers
from conf.errors import ConfigError
from conf.routing.references import SEMANTICS
from conf.routing.settings import router_settings


@pytest.mark.parametrize(
    ("moe", "router"), [(name, router) for name, row in SEMANTICS.items() for router in row.routers]
)
def test_every_pair_of_the_table_composes_and_gives_settings(moe, router):
    cfg = compose([f"moe={moe}", f"moe.router={router}"])
    assert router_settings(cfg.moe, "encoder").router == router
    assert router_settings(cfg.moe, "decoder").router in ("switch", router)


@pytest.mark.parametrize(
    ("overrides", "field", "says"),
    [
        (["moe=hf", "moe.router=top_2"], "moe.router", "moe=mesh_tf or moe=flaxformer"),
        (["moe=paper", "moe.router=ntlb"], "moe.router", "that moe.semantics=paper defines: switch"),
        (["moe=flaxformer", "moe.router=ntlb"], "moe.router", "switch, top_2, switch_max, expert_choice"),
        (["moe.decoder_router=expert_choice"], "moe.decoder_router", "later tokens"),
        (["moe.top_k=2"], "moe.top_k", "needs 1 with moe.router=switch"),
        (["moe.router=switch_max", "moe.top_k=2"], "moe.top_k", "needs 1"),
        (["moe.router=ntlb", "moe.top_k=99"], "moe.top_k", "needs 1 to"),
        (["moe.padding=ignored"], "moe.padding", "moe=flaxformer"),
        (["moe.second_policy=threshold"], "moe.second_policy", "moe.router=top_2"),
        (["moe.router=top_2", "moe.second_threshold=0"], "moe.second_threshold", "above 0"),
        (["moe.router=top_2", "moe.second_loss_weight=-1"], "moe.second_loss_weight", "at least 0"),
    ],
)
def test_what_cannot_be_is_refused_with_the_legal_values(overrides, field, says):
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    assert caught.value.field == field
    assert says in str(caught.value)


def test_batch_priority_with_two_choices_is_a_setting_of_flaxformer():
    cfg = compose(["moe=flaxformer", "moe.router=switch_max", "moe.top_k=2"])
    settings = router_settings(cfg.moe, "encoder")
    assert (settings.choices, settings.order, settings.gates) == (2, "gate", "full")
    assert router_settings(cfg.moe, "decoder").choices == 1, "the decoder's switch keeps its own number"


def test_flaxformer_takes_any_number_of_choices_and_mesh_tf_two():
    moe = compose(["moe=flaxformer", "moe.router=top_2", "moe.top_k=3"]).moe
    settings = router_settings(moe, "decoder")
    assert (settings.router, settings.choices, settings.gates, settings.aux_choices) == ("top_2", 3, "full", "sum")
    for overrides in (["moe.router=top_2", "moe.top_k=3"], ["moe=flaxformer", "moe.router=top_2", "moe.top_k=9"]):
        with pytest.raises(ConfigError, match="needs 2"):
            compose(overrides)


def test_a_second_choice_costs_one_more_expert_in_each_expert_layer():
    one, two = (compose(["model=switch_base_8", f"moe.router={router}"]) for router in ("switch", "top_2"))
    assert num_params(one.model, one.moe) == num_params(two.model, two.moe)
    expert = (3 if one.model.ffn == "gated_gelu" else 2) * one.model.d_model * one.model.d_ff
    layers = sum(len(sparse_layers(one.model, one.moe, stack)) for stack in STACKS)
    more = num_active_params(two.model, two.moe) - num_active_params(one.model, one.moe)
    assert more == layers * expert
    lengths = {"encoder_length": 10, "decoder_length": 10}
    flops = [forward_flops(cfg.model, cfg.moe, **lengths).total for cfg in (one, two)]
    assert flops[1] - flops[0] == 2 * 10 * more


def test_the_default_is_mended():
    moe = compose([]).moe
    assert moe.defects == "mended"
    settings = router_settings(moe, "encoder")
    assert (settings.kernel, settings.combine, settings.aux_f, settings.aux_mean) == ("fp32", "fp32", "real", "real")
    reproduced = router_settings(compose(["moe.defects=reproduced"]).moe, "encoder")
    assert (reproduced.kernel, reproduced.combine, reproduced.aux_f) == ("activation", "activation", "all")
