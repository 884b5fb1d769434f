"""Groups and capacity against numbers from the papers."""

from dataclasses import replace

from conf.compose import compose
from conf.derived.groups import auto_group_sequences, expert_capacity, slots_per_token


def test_capacity_floors_rounds_or_is_absolute_by_semantics():
    moe = replace(compose([]).moe, num_experts=8, capacity_factor=1.25, min_expert_capacity=4)
    assert expert_capacity(moe, 100, train=True) == 15  # floor(15.625)
    assert expert_capacity(replace(moe, semantics="flaxformer"), 100, train=True) == 16
    assert expert_capacity(moe, 8, train=True) == 4  # the minimum, above floor(1.25)
    assert expert_capacity(replace(moe, num_experts=1, capacity_factor=4.0), 100, train=True) == 100  # never above S
    assert expert_capacity(replace(moe, semantics="hf", min_expert_capacity=64), 100, train=True) == 64
    assert expert_capacity(moe, 100, train=False) == int(100 * moe.eval_capacity_factor / 8)


def test_slots_per_token_show_when_the_minimum_dominates():
    lengths = ("data.encoder_length=512", "data.decoder_length=128", "moe.group_sequences=2")
    cfg = compose(["moe.num_experts=2048", "moe.min_expert_capacity=4", *lengths])
    assert slots_per_token(cfg, "encoder", train=True) == 8.0  # the design's example


def test_without_dropping_an_expert_may_have_the_whole_group_and_computes_the_choices_of_its_tokens():
    cfg = compose(["moe.num_experts=2048", "moe.capacity=dropless", "moe.router=top_2", "moe.capacity_factor=0.5"])
    assert [slots_per_token(cfg, stack, train=True) for stack in ("encoder", "decoder")] == [2, 2]
    assert expert_capacity(cfg.moe, 100, train=True) == 100


def test_groups_hold_at_most_the_references_tokens():
    cfg = compose(["model=switch_base_8", "moe.group_sequences=1"])
    assert auto_group_sequences(cfg) == 2  # 2 x 512 = 1,024 tokens
    assert auto_group_sequences(replace(cfg, moe=replace(cfg.moe, semantics="hf"))) == 1
