"""The data table of tensor names, shapes and orientations: ours on one side, Hugging Face's on the other.

Both sides write linear layers as [out, in], so most tensors are equal as they lie. Ours differ in three ways: an expert
bank is one tensor [experts, in, out] where theirs is one [out, in] per expert; the router is [in, experts]; the rows of
the vocabulary are padded to a multiple of 128. In the templates {s} is a stack, {i} a layer, {e} an expert and {f} the
number of the feed-forward sublayer (1 in the encoder, 2 in the decoder).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from conf.derived.layers import Layer, layers, stacks
from conf.schema import ModelConfig, MoeConfig
from model.activations import FORMS

Kind = Literal["t5", "switch_transformers"]
Where = Literal["shared", "apart", "head", "stack", "layer", "cross", "dense", "sparse"]
Shape = tuple[int, ...]
# What one matrix of theirs is in our tensor: all of it, as it lies or transposed, or a transposed slice of dim 0.
Turn = Literal["same", "transposed", "expert"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of the table."""

    where: Where  # once: a shared embedding, one per stack, an output matrix; or in every stack / layer of that kind
    ours: str
    theirs: str
    turn: Turn = "same"


_ATTENTION = ("q", "k", "v", "o")
TABLE: tuple[Row, ...] = (
    Row(where="shared", ours="shared.weight", theirs="shared.weight"),
    Row(where="apart", ours="encoder_embedding.weight", theirs="encoder.embed_tokens.weight"),
    Row(where="apart", ours="decoder_embedding.weight", theirs="decoder.embed_tokens.weight"),
    Row(where="head", ours="lm_head.weight", theirs="lm_head.weight"),
    Row(
        where="stack",
        ours="{s}.relative_bias.weight",
        theirs="{s}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    ),
    Row(where="stack", ours="{s}.final_norm.weight", theirs="{s}.final_layer_norm.weight"),
    Row(
        where="layer",
        ours="{s}.layers.{i}.self_attention_norm.weight",
        theirs="{s}.block.{i}.layer.0.layer_norm.weight",
    ),
    *(
        Row(
            where="layer",
            ours="{s}.layers.{i}.self_attention." + p + ".weight",
            theirs="{s}.block.{i}.layer.0.SelfAttention." + p + ".weight",
        )
        for p in _ATTENTION
    ),
    Row(
        where="cross",
        ours="{s}.layers.{i}.cross_attention_norm.weight",
        theirs="{s}.block.{i}.layer.1.layer_norm.weight",
    ),
    *(
        Row(
            where="cross",
            ours="{s}.layers.{i}.cross_attention." + p + ".weight",
            theirs="{s}.block.{i}.layer.1.EncDecAttention." + p + ".weight",
        )
        for p in _ATTENTION
    ),
    Row(where="layer", ours="{s}.layers.{i}.ff_norm.weight", theirs="{s}.block.{i}.layer.{f}.layer_norm.weight"),
    Row(
        where="dense",
        ours="{s}.layers.{i}.ff.{w}.weight",
        theirs="{s}.block.{i}.layer.{f}.{dense}.{w}.weight",
    ),
    Row(
        where="sparse",
        ours="{s}.layers.{i}.ff.router.weight",
        theirs="{s}.block.{i}.layer.{f}.mlp.router.classifier.weight",
        turn="transposed",
    ),
    Row(
        where="sparse",
        ours="{s}.layers.{i}.ff.experts.{w}",
        theirs="{s}.block.{i}.layer.{f}.mlp.experts.expert_{e}.{w}.weight",
        turn="expert",
    ),
)
DENSE_MODULE: dict[Kind, str] = {"t5": "DenseReluDense", "switch_transformers": "mlp"}  # {dense} in the table

EMBEDDING, HEAD = "shared.weight", "lm_head.weight"  # the same in theirs and ours
# What the library's stacks read. Either both equal the embedding and are copies of it, or the embedding is never read.
COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# Ours whose rows are ids, padded.
VOCABULARY = frozenset({EMBEDDING, HEAD, "encoder_embedding.weight", "decoder_embedding.weight"})
# What old files carry although no version of the library reads it: cross attention has had no position bias since 2019.
UNUSED = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """One of our tensors and where its values are in theirs."""

    ours: str
    theirs: tuple[str, ...]  # one name; of an expert bank one per expert, in order
    turn: Turn

    def their_shape(self, our_shape: Shape, vocab_size: int) -> Shape:
        """Shape of each of their tensors, from the shape of ours."""
        shape = our_shape[1:] if self.turn == "expert" else our_shape
        if self.ours in VOCABULARY:
            return (vocab_size, *shape[1:])
        return shape if self.turn == "same" else tuple(reversed(shape))


def pairs(model: ModelConfig, moe: MoeConfig, kind: Kind) -> tuple[Pair, ...]:
    """The table written out for one model."""
    once = {"shared": model.share_embeddings, "apart": not model.share_embeddings, "head": not model.tie_embeddings}
    found: list[Pair] = []
    for row in TABLE:
        if row.where in once:
            found += [Pair(ours=row.ours, theirs=(row.theirs,), turn=row.turn)] if once[row.where] else []
        elif row.where == "stack":
            found += [
                Pair(ours=row.ours.format(s=s), theirs=(row.theirs.format(s=s),), turn=row.turn)
                for s in stacks(model, moe)
            ]
        else:
            found += [pair for layer in layers(model, moe) for pair in _in_layer(row, layer, kind)]
    return tuple(found)


def _in_layer(row: Row, layer: Layer, kind: Kind) -> list[Pair]:
    has = {"layer": True, "cross": "cross" in layer.attention, "dense": not layer.experts, "sparse": layer.experts > 0}
    if not has[row.where]:
        return []
    found = []
    for w in (*FORMS[layer.feed_forward].into, "wo") if "{w}" in row.ours else ("",):
        fields = {"s": layer.stack, "i": layer.index, "f": len(layer.attention), "w": w, "dense": DENSE_MODULE[kind]}
        experts = range(layer.experts) if row.turn == "expert" else (0,)
        theirs = tuple(row.theirs.format(**fields, e=e) for e in experts)
        found.append(Pair(ours=row.ours.format(**fields), theirs=theirs, turn=row.turn))
    return found
