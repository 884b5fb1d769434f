"""What is decided before a process starts."""

import pytest

from conf.errors import ConfigError, ConfigErrors
from conf.machine import available_memory
from measure.verify.planning.layouts import Layout
from measure.verify.planning.plan import bytes_needed, check_memory, make_plan
from tests.measure.verify.tiny import TINY, plan


def test_noise_and_losses_that_are_off_are_turned_on_and_told():
    made = plan("tp=1", overrides=("moe.jitter=0", "moe.aux_loss_weight=0"))
    moe = made.base.moe
    assert made.base.model.dropout > 0
    assert min(moe.jitter, moe.expert_dropout, moe.aux_loss_weight, moe.z_loss_weight) > 0
    told = " ".join(made.changes)
    for field in ("model.dropout", "moe.jitter", "moe.expert_dropout", "moe.aux_loss_weight", "moe.z_loss_weight"):
        assert field in told
    assert f"optim.epsilon={made.base.optim.epsilon:g} (was 1e-08)" in made.changes
    assert {"model.ffn=gelu (was relu)", "optim.weight_decay=1 (was 0.01)", "optim.clip_norm=0.1 (was 1)"} <= set(
        made.changes
    )


def test_what_would_not_show_is_turned_up():
    made = plan("tp=1", overrides=("schedule.lr=1e-5", "optim.clip_norm=0"))
    assert "schedule.lr=0.001 (was 1e-05)" in made.changes
    assert made.base.optim.clip_norm == 0
    adafactor = plan("tp=1", overrides=("optim=adafactor", "parallel.zero=0"))
    assert adafactor.base.optim.epsilon == 1e-30
    assert adafactor.base.optim.weight_decay == 1


def test_what_is_on_stays_as_it_is():
    made = plan("tp=1", overrides=("model.dropout=0.3", "moe.jitter=0.2", "optim.weight_decay=2"))
    assert (made.base.model.dropout, made.base.moe.jitter, made.base.optim.weight_decay) == (0.3, 0.2, 2)
    assert not any(field in line for line in made.changes for field in ("model.dropout", "moe.jitter", "decay"))


def test_relus_kink_is_left_out_but_where_rounding_is_too_small_to_cross_it():
    assert plan("tp=1", overrides=("model.ffn=gated_gelu", "model.tie_embeddings=false")).base.model.ffn == "gated_gelu"
    assert plan("tp=1").base.model.ffn == "gelu"
    assert plan("tp=1", exact=True).base.model.ffn == "relu"


def test_a_dense_model_gets_dropout_alone():
    assert [line.partition("=")[0] for line in plan("tp=2", overrides=("moe=dense",)).changes] == [
        "model.dropout", "model.ffn", "optim.epsilon", "optim.weight_decay", "optim.clip_norm",
    ]  # fmt: skip


def test_the_reference_is_one_rank_whatever_the_overrides_say():
    made = make_plan([*TINY, "parallel.tp=2", "parallel.ep=2", "train.accumulation=2", "launch.nproc=4"])
    base = made.base
    assert (base.parallel.tp, base.parallel.ep, base.launch.nproc, base.train.accumulation) == (1, 1, 1, 1)
    assert made.layouts[0] == Layout(tp=2, dp=2, ep=2, etp=2, zero=1, accumulation=2, recompute=False)


def test_the_groups_of_the_global_batch_hold_at_every_layout():
    made = make_plan([*TINY, "moe.group_sequences=null", "train.global_batch=128"], typed=["dp=2", "tp=2"])
    sizes = {made.config(layout).moe.group_sequences for layout in made.layouts}
    assert sizes == {made.base.moe.group_sequences}


def test_ranks_follow_from_the_layouts():
    assert plan("tp=2 ep=2", "dp=2").ranks == 4
    assert plan("tp=2 ep=4").ranks == 8
    assert plan("tp=1", ranks=2).ranks == 2


def test_the_default_set_fits_and_is_small():
    made = make_plan([*TINY], ranks=4)
    assert 8 <= len(made.layouts) <= 16
    assert all(layout.world <= 4 for layout in made.layouts)
    assert made.cover is not None
    assert made.cover.covered > 0.95 * made.cover.pairs
    everything = make_plan([*TINY], ranks=4, everything=True)
    assert len(everything.layouts) > 100
    assert set(made.layouts) <= set(everything.layouts)


@pytest.mark.parametrize(("ranks", "most"), [(3, 2), (5, 4), (7, 4)])
def test_odd_numbers_of_ranks_are_used_as_far_as_they_go(ranks, most):
    made = make_plan([*TINY], ranks=ranks)
    assert max(layout.world for layout in made.layouts) == made.ranks == most


def test_of_a_default_set_what_cannot_be_run_is_left_out_with_the_reason():
    made = plan(ranks=8)
    assert all(layout.ep <= 4 for layout in made.layouts)
    assert any("moe.num_experts" in each.reason for each in made.refused)


def test_typed_layouts_that_cannot_be_run_are_all_named_and_none_is_run():
    with pytest.raises(ConfigErrors, match=r"ep=8[\s\S]*num_experts[\s\S]*tp=8[\s\S]*num_heads"):
        plan("tp=2", "ep=8 dp=8", "tp=8 dp=1", ranks=8)
    with pytest.raises(ConfigError, match="num_experts"):
        plan("ep=8 dp=8", "dp=2", ranks=8)


def test_a_layout_typed_as_overrides_is_not_passed_over():
    with pytest.raises(ConfigError, match=r"parallel\.tp"):
        make_plan([*TINY, "parallel.tp=3"], ranks=4)


def test_without_an_engine_stages_are_one():
    made = plan("dp=2 zero=1", "dp=2 zero=2", exact=True)
    assert [layout.zero for layout in made.layouts] == [0]


def test_models_that_do_not_fit_are_refused_early_with_a_way_out():
    made = make_plan(["model=switch_base_128"], typed=["ep=2"])
    assert bytes_needed(made) > 7.4e9 * 16  # more than weights, gradients and moments of all parameters
    with pytest.raises(ConfigError, match=r"GiB.*model\.num_encoder_layers"):
        check_memory(made, 16 * 2**30, what="this machine")
    check_memory(plan("tp=2"), available_memory(), what="this machine")
