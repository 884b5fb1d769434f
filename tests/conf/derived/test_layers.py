"""Which layers hold experts."""

from dataclasses import replace

from conf.compose import compose
from conf.derived.layers import is_sparse_layer, sparse_layers


def test_sparse_layers_are_the_last_of_each_period_or_the_second():
    cfg = compose(["model.num_encoder_layers=12", "model.num_decoder_layers=3"])

    def sparse(stack, **moe):
        return sparse_layers(cfg.model, replace(cfg.moe, **moe), stack)

    assert sparse("encoder", sparse_every=3) == (2, 5, 8, 11)
    assert sparse("encoder", sparse_every=3, semantics="hf") == (1, 4, 7, 10)
    assert sparse("decoder", sparse_every=3, decoder_sparse_every=1) == (0, 1, 2)
    assert sparse("decoder", sparse_every=3, decoder_sparse_every=0) == ()
    assert sparse("encoder", sparse_every=0, decoder_sparse_every=2) == ()
    assert sparse("decoder", sparse_every=1, decoder_sparse_every=1, semantics="hf") == (0, 1, 2)
    dense = replace(cfg.model, moe="dense")
    assert not any(is_sparse_layer(dense, cfg.moe, "encoder", layer) for layer in range(12))
