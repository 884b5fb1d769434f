"""Derived quantities against numbers from the papers and against counting by hand."""

from dataclasses import replace

import pytest

from conf.compose import compose
from conf.derived.derive import auto_warmup_steps, planned_steps, scales_logits
from conf.derived.estimate import padded_vocab_size
from conf.derived.groups import auto_group_sequences, expert_capacity, slots_per_token
from conf.derived.layers import is_sparse_layer, sparse_layers
from conf.derived.windows import corrupted_lengths, span_lengths


def test_t5_lengths():
    data = compose(["model=t5_base"]).data
    assert span_lengths(data) == (568, 512, 114)  # T5, section 3.1.4
    assert corrupted_lengths(569, 0.15, 3.0).inputs > 512


@pytest.mark.parametrize("length", [16, 64, 128, 500])
def test_the_window_is_the_longest_that_fits(length):
    data = compose([f"data.encoder_length={length}", "moe.group_sequences=1"]).data
    raw, inputs, targets = span_lengths(data)
    noise = round(raw * 0.15)
    spans = round(noise / 3)
    assert inputs == raw - noise + spans + 1 <= length
    assert targets == noise + spans + 1
    assert corrupted_lengths(raw + 1, 0.15, 3.0).inputs > length


def test_capacity_floors_rounds_or_is_absolute_by_semantics():
    moe = replace(compose([]).moe, num_experts=8, capacity_factor=1.25, min_expert_capacity=4)
    assert expert_capacity(moe, 100, train=True) == 15  # floor(15.625)
    assert expert_capacity(replace(moe, semantics="flaxformer"), 100, train=True) == 16
    assert expert_capacity(moe, 8, train=True) == 4  # the minimum, above floor(1.25)
    assert expert_capacity(replace(moe, num_experts=1, capacity_factor=4.0), 100, train=True) == 100  # never above S
    assert expert_capacity(replace(moe, semantics="hf", min_expert_capacity=64), 100, train=True) == 64
    assert expert_capacity(moe, 100, train=False) == int(100 * moe.eval_capacity_factor / 8)


def test_slots_per_token_show_when_the_minimum_dominates():
    moe = replace(compose([]).moe, num_experts=2048, min_expert_capacity=4)
    assert slots_per_token(moe, 1024, train=True) == 8.0  # the design's example


def test_sparse_layers_are_the_last_of_each_period_or_the_second():
    cfg = compose(["model.num_encoder_layers=12", "model.num_decoder_layers=3"])

    def sparse(stack, **moe):
        return sparse_layers(cfg.model, replace(cfg.moe, **moe), stack)

    assert sparse("encoder", sparse_every=3) == (2, 5, 8, 11)
    assert sparse("encoder", sparse_every=3, semantics="hf") == (1, 4, 7, 10)
    assert sparse("decoder", sparse_every=3, decoder_sparse_every=1) == (0, 1, 2)
    assert sparse("decoder", sparse_every=3, decoder_sparse_every=0) == ()
    assert sparse("encoder", sparse_every=0, decoder_sparse_every=2) == ()
    assert sparse("decoder", sparse_every=1, decoder_sparse_every=None, semantics="hf") == (0, 1, 2)
    dense = replace(cfg.model, moe="dense")
    assert not any(is_sparse_layer(dense, cfg.moe, "encoder", layer) for layer in range(12))


def test_logits_are_scaled_where_the_output_matrix_is_tied_unless_a_setting_says_otherwise():
    model = compose(["model.tie_embeddings=true"]).model
    assert model.logit_scale == "width"
    assert not scales_logits(replace(model, tie_embeddings=False, logit_scale=None))
    assert scales_logits(replace(model, tie_embeddings=False, logit_scale="width"))
    assert not scales_logits(replace(model, logit_scale="one"))


def test_vocabulary_is_padded_to_128():
    assert [padded_vocab_size(n) for n in (1, 128, 129, 32100)] == [128, 128, 256, 32128]


def test_groups_hold_at_most_the_references_tokens():
    cfg = compose(["model=switch_base_8", "moe.group_sequences=1"])
    assert auto_group_sequences(cfg) == 2  # 2 x 512 = 1,024 tokens
    assert auto_group_sequences(replace(cfg, moe=replace(cfg.moe, semantics="hf"))) == 1


def test_warm_up_is_a_tenth_of_a_short_run():
    assert [auto_warmup_steps(steps) for steps in (50, 600, 10**6)] == [5, 60, 10_000]


def test_a_token_limit_plans_steps():
    cfg = compose(["train.steps=null", "train.tokens=100000"])
    assert cfg.data.decoder_length is not None
    per_step = cfg.train.global_batch * (cfg.data.encoder_length + cfg.data.decoder_length)
    assert planned_steps(cfg) == -(-100000 // per_step)
