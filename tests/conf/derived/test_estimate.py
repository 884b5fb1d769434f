"""Closed forms against published sizes and against counting by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from conf.derived.estimate import (
    count_params,
    flops_per_sequence,
    flops_per_token,
    forward_flops,
    local_params,
    num_active_params,
    num_params,
    padded_vocab_size,
)
from tests.conf.composed import composed

# preset, parameters as published (T5: section 3.7 of its paper; Switch: Table 9), tolerance of the printed digits
PUBLISHED = [
    ("t5_small", 60e6, 0.01),
    ("t5_base", 223e6, 0.01),
    ("t5_large", 738e6, 0.01),
    ("t5_3b", 2.85e9, 0.01),
    ("t5_11b", 11.3e9, 0.01),
    ("t5_v1_1_small", 77e6, 0.01),
    ("t5_v1_1_base", 248e6, 0.01),
    ("t5_v1_1_large", 783e6, 0.01),
    ("t5_v1_1_xl", 2.85e9, 0.01),
    ("t5_v1_1_xxl", 11.1e9, 0.01),
    ("switch_base_128", 7.4e9, 0.01),
    ("switch_xxl", 395e9, 0.01),
    ("switch_c_2048", 1571e9, 0.01),
]


@pytest.mark.parametrize(("preset", "published", "tolerance"), PUBLISHED)
def test_presets_have_the_published_number_of_parameters(preset, published, tolerance):
    cfg = composed(f"model={preset}")
    assert num_params(cfg.model, cfg.moe) == pytest.approx(published, rel=tolerance)


def test_switch_xxl_with_the_64_experts_that_table_9_prints_would_have_half_the_parameters():
    cfg = composed("model=switch_xxl", "moe.num_experts=64")
    assert 195e9 < num_params(cfg.model, cfg.moe) < 205e9


def test_the_26_billion_of_switch_large_are_those_of_its_released_shape():
    released = composed("model=switch_large_128", "model.ffn=relu", "model.d_ff=4096")
    assert num_params(released.model, released.moe) == pytest.approx(26.3e9, rel=0.002)
    table = composed("model=switch_large_128")
    assert num_params(table.model, table.moe) == pytest.approx(27.1e9, rel=0.002)


def test_the_released_switch_base_shape_has_the_same_parameters_and_flops():
    table = composed("model=switch_base_8")
    released = composed("model=switch_base_8", "model.ffn=relu", "model.d_ff=3072")
    assert num_params(table.model, table.moe) == num_params(released.model, released.moe)
    assert flops_per_sequence(table) == flops_per_sequence(released)


def test_a_model_small_enough_to_count_by_hand():
    cfg = composed("model.tie_embeddings=true")
    model = replace(
        cfg.model, vocab_size=100, d_model=4, d_ff=6, d_kv=3, num_heads=2, num_encoder_layers=2, num_decoder_layers=2
    )
    moe = replace(cfg.moe, num_experts=5)
    norms = (2 * 2 + 2 * 3 + 2) * 4
    attention = (2 + 2 * 2) * 4 * (4 * 6)  # six attention layers of four 4 x 6 matrices
    dense = 2 * 2 * (4 * 6)  # the first layer of each stack
    experts = 2 * 5 * 2 * (4 * 6)  # the second layer of each stack
    routers = 2 * 4 * 5
    bias = 2 * 32 * 2
    everything = 128 * 4 + bias + attention + dense + experts + routers + norms
    assert num_params(model, moe) == everything
    assert num_active_params(model, moe) == everything - 2 * 4 * 2 * (4 * 6)
    untied = replace(model, tie_embeddings=False)
    assert num_params(untied, moe) == everything + 128 * 4
    assert num_params(replace(untied, share_embeddings=False), moe) == everything + 2 * 128 * 4


def test_the_dense_twin_has_the_flops_of_the_switch_but_for_the_router():
    switch = composed("model=switch_base_64")
    dense = composed("model=switch_base_64", "moe=dense")
    router = 3 * 2 * 768 * 64 * 6 * (512 + 114)
    assert flops_per_sequence(switch) - flops_per_sequence(dense) == router
    assert num_params(dense.model, dense.moe) == num_active_params(switch.model, switch.moe) - 12 * 768 * 64


def test_forward_flops_of_the_two_stacks_by_hand():
    cfg = composed("model=t5_base")
    flops = forward_flops(cfg.model, cfg.moe, encoder_length=10, decoder_length=3)
    weights = 4 * 768 * 768 + 2 * 768 * 3072
    assert flops.encoder == 12 * (2 * weights * 10 + 4 * 768 * 10 * 10)
    cross = 2 * 2 * 768 * 768 * (3 + 10) + 4 * 768 * 3 * 10
    assert flops.decoder == 12 * (2 * weights * 3 + 4 * 768 * 3 * 3 + cross)
    assert flops.logits == 2 * 768 * 32128 * 3


def test_flops_per_token_is_near_six_times_the_active_weights_of_a_token():
    # an encoder token meets the encoder's weights only, and a decoder token the decoder's: about half of them each
    cfg = composed("model=t5_11b")
    active = num_params(cfg.model, cfg.moe)
    assert 0.4 * 6 * active < flops_per_token(cfg) < 0.6 * 6 * active


def test_parameters_of_all_ranks_add_up_when_nothing_is_replicated_but_the_whole_ones():
    cfg = composed("parallel=expert_model_data", "launch.nproc=4")
    params = count_params(cfg.model, cfg.moe)
    assert 2 * (local_params(cfg) - params.whole) == params.cut + params.experts // 2


def test_vocabulary_is_padded_to_128():
    assert [padded_vocab_size(n) for n in (1, 128, 129, 32100)] == [128, 128, 256, 32128]
