"""What the rules of a stack are: a reference joined with a router and with what the run mends."""

import importlib

import pytest

from conf.compose import compose
from conf.derived.estimate import forward_flops, num_active_params, num_params
from conf.derived.layers import expert_layers
from conf.errors import ConfigError
from conf.routing.routers import ROUTERS
from conf.routing.settings import moe_rules


@pytest.mark.parametrize(("moe", "router"), [(name, router) for router, row in ROUTERS.items() for name in row.under])
def test_every_pair_of_the_table_composes_and_gives_rules(moe, router):
    cfg = compose([f"moe={moe}", f"moe.router={router}"])
    assert moe_rules(cfg.moe, "encoder").router == router
    assert moe_rules(cfg.moe, "decoder").router in ("switch", router)


def test_batch_priority_with_two_choices_is_a_setting_of_flaxformer():
    cfg = compose(["moe=flaxformer", "moe.router=switch_max", "moe.top_k=2"])
    rules = moe_rules(cfg.moe, "encoder")
    assert (rules.router, rules.choices, rules.gates) == ("switch_max", 2, "full")
    assert moe_rules(cfg.moe, "decoder").choices == 1, "the decoder's switch keeps its own number"


def test_flaxformer_takes_any_number_of_choices_and_mesh_tf_two():
    moe = compose(["moe=flaxformer", "moe.router=top_2", "moe.top_k=3"]).moe
    rules = moe_rules(moe, "decoder")
    assert (rules.router, rules.choices, rules.gates) == ("top_2", 3, "full")
    for overrides in (["moe.router=top_2", "moe.top_k=3"], ["moe=flaxformer", "moe.router=top_2", "moe.top_k=9"]):
        with pytest.raises(ConfigError, match="needs 2"):
            compose(overrides)


def test_a_second_choice_costs_one_more_expert_in_each_expert_layer():
    one, two = (compose(["model=switch_base_8", f"moe.router={router}"]) for router in ("switch", "top_2"))
    assert num_params(one.model, one.moe) == num_params(two.model, two.moe)
    expert = (3 if one.model.ffn == "gated_gelu" else 2) * one.model.d_model * one.model.d_ff
    layers = len(expert_layers(one.model, one.moe))
    more = num_active_params(two.model, two.moe) - num_active_params(one.model, one.moe)
    assert more == layers * expert
    lengths = {"encoder_length": 10, "decoder_length": 10}
    flops = [forward_flops(cfg.model, cfg.moe, **lengths).total for cfg in (one, two)]
    assert flops[1] - flops[0] == 2 * 10 * more


def test_the_default_is_mended():
    moe = compose([]).moe
    assert moe.defects == "mended"
    rules = moe_rules(moe, "encoder")
    mended = (rules.rounding.kernel, rules.rounding.combine, rules.aux.f, rules.aux.mean)
    assert mended == ("fp32", "fp32", "real", "real")
    reproduced = moe_rules(compose(["moe.defects=reproduced"]).moe, "encoder")
    kept = (reproduced.rounding.kernel, reproduced.rounding.combine, reproduced.aux.f)
    assert kept == ("activation", "activation", "all")


@pytest.mark.parametrize("name", ROUTERS)
def test_the_file_of_every_row_holds_its_router(name):
    from model.moe.routers.router import Router

    assert isinstance(importlib.import_module(ROUTERS[name].module).ROUTER, Router)
