"""Which layers hold experts."""

from dataclasses import replace

from conf.compose import compose
from conf.derived.layers import Layer, expert_layers, is_dense, layer_names, layers, stacks


def test_sparse_layers_are_the_last_of_each_period_or_the_second():
    cfg = compose(["model.num_encoder_layers=12", "model.num_decoder_layers=3"])

    def sparse(stack, **moe):
        plan = stacks(cfg.model, replace(cfg.moe, **moe))[stack]
        return tuple(layer.index for layer in plan if layer.experts)

    assert sparse("encoder", sparse_every=3) == (2, 5, 8, 11)
    assert sparse("encoder", sparse_every=3, semantics="hf") == (1, 4, 7, 10)
    assert sparse("decoder", sparse_every=3, decoder_sparse_every=1) == (0, 1, 2)
    assert sparse("decoder", sparse_every=3, decoder_sparse_every=0) == ()
    assert sparse("encoder", sparse_every=0, decoder_sparse_every=2) == ()
    assert sparse("decoder", sparse_every=1, decoder_sparse_every=1, semantics="hf") == (0, 1, 2)


def test_the_plan_of_a_small_model_by_eye():
    cfg = compose(
        ["model.num_encoder_layers=1", "model.num_decoder_layers=2", "model.ffn=relu", "moe.num_experts=6",
         "moe.sparse_every=0", "moe.decoder_sparse_every=2", "moe.router=top_2"]
    )  # fmt: skip
    shape = {"feed_forward": "relu", "experts": 0, "router": None}
    first = Layer(stack="encoder", index=0, attention=("self",), **shape)
    second = Layer(stack="decoder", index=0, attention=("self", "cross"), **shape)
    third = replace(second, index=1, experts=6, router="top_2")
    assert layers(cfg.model, cfg.moe) == (first, second, third)
    assert stacks(cfg.model, cfg.moe) == {"encoder": (first,), "decoder": (second, third)}
    assert expert_layers(cfg.model, cfg.moe) == (third,)
    assert layer_names(cfg) == ("decoder.1",)


def test_the_decoder_has_its_own_router_where_the_encoders_looks_ahead():
    cfg = compose(["moe.router=expert_choice"])
    assert [layer.router for layer in expert_layers(cfg.model, cfg.moe)] == ["expert_choice", "switch"]


def test_a_dense_run_has_the_same_layers_without_experts():
    sparse, dense = compose([]), compose(["moe=dense"])
    assert not is_dense(sparse)
    assert is_dense(dense)
    plain = [replace(layer, experts=0, router=None) for layer in layers(sparse.model, sparse.moe)]
    assert list(layers(dense.model, dense.moe)) == plain
