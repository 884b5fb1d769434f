"""Closed forms: parameters in all and per token, and floating-point operations, from the configuration alone.

Parameters are counted as built (padded vocabulary, router, relative bias and norms included); a test compares them with
the module. Operations are those of matrix products, 2 * m * n * k each; backward costs twice forward, so a trained
token costs three times its forward pass. Not counted: what is recomputed, empty expert slots, norms, softmax, the
embedding's look-up. Attention counts every query-key pair of the padded length, causal or not, as it is computed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from conf.derived.layers import Layer, layers, stacks
from conf.derived.topology import topology
from conf.routing.settings import experts_per_token, router_matrices
from conf.schema import ModelConfig, MoeConfig, RunConfig, Stack

VOCAB_MULTIPLE = 128  # the embedding's rows are padded to this at every layout, so that any tp up to 128 divides them
FORWARD_AND_BACKWARD = 3


def padded_vocab_size(vocab_size: int) -> int:
    """Rows of the embedding: `vocab_size` rounded up to a multiple of 128."""
    return math.ceil(vocab_size / VOCAB_MULTIPLE) * VOCAB_MULTIPLE


class Params(NamedTuple):
    """Parameters by how they are shared out over ranks and tokens."""

    cut: int  # cut by tensor parallelism: attention, dense feed-forward, embedding, relative bias
    whole: int  # on every rank: norms and routers
    experts: int  # all experts of all layers
    one_expert: int  # of each expert layer the experts that one token can be at: one, or two of top_2

    @property
    def total(self) -> int:
        """All of them."""
        return self.cut + self.whole + self.experts


def count_params(model: ModelConfig, moe: MoeConfig) -> Params:
    """Parameters of the model as built on one rank."""
    plan, stack_count = layers(model, moe), len(stacks(model, moe))
    sublayers = sum(len(layer.attention) for layer in plan)
    attention = 4 * model.d_model * model.num_heads * model.d_kv
    tables = 1 + (not model.share_embeddings) + (not model.tie_embeddings)
    weights = [(layer, _ff_weights(model, layer)) for layer in plan]
    return Params(
        cut=tables * padded_vocab_size(model.vocab_size) * model.d_model
        + stack_count * model.relative_buckets * model.num_heads
        + sublayers * attention
        + sum(one for layer, one in weights if not layer.experts),
        # norms: one per sublayer, and one at the end of each stack
        whole=(sublayers + len(plan) + stack_count + sum(_scores(moe, layer) for layer in plan)) * model.d_model,
        experts=sum(layer.experts * one for layer, one in weights),
        one_expert=sum(experts_per_token(moe, layer.stack) * one for layer, one in weights if layer.experts),
    )


def _ff_weights(model: ModelConfig, layer: Layer) -> int:
    """Weights of a layer's feed-forward layer, or of one of its experts."""
    return (3 if layer.feed_forward.startswith("gated_") else 2) * model.d_model * model.d_ff


def _scores(moe: MoeConfig, layer: Layer) -> int:
    """Columns of the matrices of a layer's router, 0 of a dense layer."""
    return router_matrices(moe, layer.stack) * layer.experts


def num_params(model: ModelConfig, moe: MoeConfig) -> int:
    """All parameters."""
    return count_params(model, moe).total


def num_active_params(model: ModelConfig, moe: MoeConfig) -> int:
    """Parameters that one token can meet: all but the experts it was not sent to."""
    params = count_params(model, moe)
    return params.cut + params.whole + params.one_expert


def local_params(cfg: RunConfig) -> int:
    """Parameters held by one rank of the configured layout (before ZeRO, which shards states and not weights)."""
    params, axes = count_params(cfg.model, cfg.moe), topology(cfg)
    return params.cut // axes.tp + params.whole + params.experts // (axes.ep * axes.etp)


class Flops(NamedTuple):
    """Floating-point operations of one sequence pair, forward only."""

    encoder: int
    decoder: int  # with cross attention, its keys and values of the encoder tokens included
    logits: int

    @property
    def total(self) -> int:
        """The whole forward pass."""
        return self.encoder + self.decoder + self.logits


def forward_flops(model: ModelConfig, moe: MoeConfig, *, encoder_length: int, decoder_length: int) -> Flops:
    """Operations of one forward pass over one sequence of `encoder_length` and its `decoder_length` targets."""
    lengths: dict[Stack, int] = {"encoder": encoder_length, "decoder": decoder_length}
    inner = model.num_heads * model.d_kv
    projection = 2 * model.d_model * inner  # of one token by one of q, k, v, o
    pair = 2 * 2 * inner  # one query with one key: its score, and its value's share

    def operations(layer: Layer) -> int:
        tokens = lengths[layer.stack]
        seen = {"self": tokens, "cross": encoder_length}
        attention = sum(2 * projection * (tokens + seen[kind]) + pair * tokens * seen[kind] for kind in layer.attention)
        visits = experts_per_token(moe, layer.stack) if layer.experts else 1
        per_token = 2 * visits * _ff_weights(model, layer) + 2 * model.d_model * _scores(moe, layer)
        return attention + per_token * tokens

    of_stack = {stack: sum(map(operations, plan)) for stack, plan in stacks(model, moe).items()}
    return Flops(
        encoder=of_stack["encoder"],
        decoder=of_stack["decoder"],
        logits=2 * model.d_model * padded_vocab_size(model.vocab_size) * decoder_length,
    )


def flops_per_sequence(cfg: RunConfig) -> int:
    """Operations of training on one sequence pair, forward and backward."""
    lengths = {"encoder_length": cfg.data.encoder_length, "decoder_length": cfg.data.decoder_length}
    forward = forward_flops(cfg.model, cfg.moe, **lengths)
    return FORWARD_AND_BACKWARD * forward.total


def flops_per_token(cfg: RunConfig) -> float:
    """Operations of training, forward and backward, per encoder or decoder token (padding counts as a token)."""
    return flops_per_sequence(cfg) / (cfg.data.encoder_length + cfg.data.decoder_length)
