"""What `resolve` fills, and that what was asked for stays."""

import pytest

from conf.compose import compose
from conf.derived.derive import auto_warmup_steps, planned_steps


@pytest.mark.parametrize(
    ("overrides", "scale"),
    [
        (("model.tie_embeddings=true",), "width"),
        (("model.tie_embeddings=false",), "one"),
        (("model.tie_embeddings=false", "model.logit_scale=width"), "width"),
        (("model.tie_embeddings=true", "model.logit_scale=one"), "one"),
    ],
)
def test_logits_are_scaled_where_the_output_matrix_is_tied_unless_a_setting_says_otherwise(overrides, scale):
    assert compose(overrides).model.logit_scale == scale


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("moe.decoder_sparse_every=0", 0),
        ("moe.group_sequences=2", 2),
        ("data.decoder_length=40", 40),
        ("parallel.etp=1", 1),
        ("schedule.warmup_steps=0", 0),
        ("train.eval_every=0", 0),
        ("train.save_every=0", 0),
    ],
)
def test_what_was_asked_for_is_not_derived_again(override, value):
    section, name = override.partition("=")[0].split(".")
    assert getattr(getattr(compose([override]), section), name) == value
    assert getattr(getattr(compose([]), section), name) not in (None, value if override != "parallel.etp=1" else None)


def test_warm_up_is_a_tenth_of_a_short_run():
    assert [auto_warmup_steps(steps) for steps in (50, 600, 10**6)] == [5, 60, 10_000]


def test_a_token_limit_plans_steps():
    cfg = compose(["train.steps=null", "train.tokens=100000"])
    per_step = cfg.train.global_batch * (cfg.data.encoder_length + cfg.data.decoder_length)
    assert planned_steps(cfg.train, cfg.data) == -(-100000 // per_step)
