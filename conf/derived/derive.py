"""Quantities that follow from a configuration by arithmetic, and `resolve`, which fills every derived field once.

After `resolve` no field that says "None: ..." in the schema is `None`, except those that mean "absent"; everything
downstream, the checkpoint included, sees the same numbers.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace
from typing import NamedTuple

from conf.derived.topology import topology
from conf.routing.references import SEMANTICS
from conf.schema import DataConfig, ModelConfig, MoeConfig, RunConfig, Stack

STACKS: tuple[Stack, ...] = ("encoder", "decoder")
VOCAB_MULTIPLE = 128  # the embedding's rows are padded to this at every layout, so that any tp up to 128 divides them
REFERENCE_WARMUP_STEPS = 10_000


class SpanLengths(NamedTuple):
    """Token counts of one span-corruption example."""

    raw: int  # tokens of text before corruption
    inputs: int  # encoder tokens with sentinels and EOS
    targets: int  # decoder targets with sentinels and EOS

    @property
    def spans(self) -> int:
        """Corrupted spans of the window: each puts one sentinel on either side."""
        return (self.inputs + self.targets - self.raw - 2) // 2


def corrupted_lengths(raw: int, noise_density: float, mean_span_length: float) -> SpanLengths:
    """Lengths after corrupting `raw` tokens: one sentinel per span on each side, one EOS each (T5, section 3.1.4)."""
    noise = min(max(round(raw * noise_density), 1), raw - 1)
    spans = max(round(noise / mean_span_length), 1)
    return SpanLengths(raw, raw - noise + spans + 1, noise + spans + 1)


def span_lengths(data: DataConfig) -> SpanLengths:
    """The largest window of text whose corrupted form fits `encoder_length` (T5: 512 takes 568 tokens, targets 114)."""
    raw = 2
    while corrupted_lengths(raw + 1, data.noise_density, data.mean_span_length).inputs <= data.encoder_length:
        raw += 1
    return corrupted_lengths(raw, data.noise_density, data.mean_span_length)


def micro_batch_size(cfg: RunConfig) -> int:
    """Sequences of one rank in one micro-batch."""
    return cfg.train.global_batch // (topology(cfg).dp * cfg.train.accumulation)


def padded_vocab_size(vocab_size: int) -> int:
    """Rows of the embedding: `vocab_size` rounded up to a multiple of 128."""
    return math.ceil(vocab_size / VOCAB_MULTIPLE) * VOCAB_MULTIPLE


def scales_logits(model: ModelConfig) -> bool:
    """Whether the decoder's output is multiplied by d_model**-0.5 before the logits: T5 does where it ties them."""
    return model.tie_embeddings if model.logit_scale is None else model.logit_scale == "width"


def stack_depth(model: ModelConfig, stack: Stack) -> int:
    """Layers of a stack."""
    return model.num_encoder_layers if stack == "encoder" else model.num_decoder_layers


def is_sparse_layer(model: ModelConfig, moe: MoeConfig, stack: Stack, layer: int) -> bool:
    """Whether layer `layer` (from 0) of a stack is an expert bank (1, 3, 5 .. for every 2; none for every 0)."""
    every = moe.sparse_every
    if stack == "decoder" and moe.decoder_sparse_every is not None:
        every = moe.decoder_sparse_every
    place = every - 1 if SEMANTICS[moe.semantics].layout == "last_of_every" else min(1, every - 1)
    return model.moe == "switch" and every > 0 and layer % every == place


def sparse_layers(model: ModelConfig, moe: MoeConfig, stack: Stack) -> tuple[int, ...]:
    """Indices of the expert layers of a stack."""
    return tuple(layer for layer in range(stack_depth(model, stack)) if is_sparse_layer(model, moe, stack, layer))


def expert_capacity(moe: MoeConfig, group_tokens: int, *, train: bool) -> int:
    """Slots of one expert for one group of `group_tokens` tokens (rounding and bounds of the named semantics)."""
    row = SEMANTICS[moe.semantics]
    factor = moe.capacity_factor if train else moe.eval_capacity_factor
    if row.capacity == "absolute":
        return moe.min_expert_capacity  # Hugging Face's `expert_capacity` is an absolute number
    if row.capacity == "half_even":
        slots = round(factor * group_tokens / moe.num_experts)
    else:
        slots = int(group_tokens * factor / moe.num_experts)
    if row.capacity_limit == "group":
        slots = min(slots, group_tokens)
    return max(slots, moe.min_expert_capacity if row.capacity_minimum == "setting" else 1)


def auto_group_sequences(cfg: RunConfig) -> int:
    """Whole sequences per routing group by the rule of the semantics, evaluated on the global batch.

    The largest divisor of the global batch whose encoder tokens stay within the reference's group size; Hugging Face
    routes each sequence alone, and flaxformer makes at least as many groups as there are experts.
    """
    row = SEMANTICS[cfg.moe.semantics]
    limit = row.group_tokens // cfg.data.encoder_length
    batch = cfg.train.global_batch
    if row.group_floor == "num_experts":
        limit = min(limit, batch // cfg.moe.num_experts)
    return max((d for d in range(1, batch + 1) if batch % d == 0 and d <= limit), default=1)


def planned_steps(cfg: RunConfig) -> int:
    """Optimizer steps of the whole run; from a token limit alone, the count at full windows."""
    if cfg.train.steps is not None:
        return cfg.train.steps
    assert cfg.train.tokens is not None, "validation asks for steps or tokens"
    decoder_length = cfg.data.decoder_length or span_lengths(cfg.data).targets
    return math.ceil(cfg.train.tokens / (cfg.train.global_batch * (cfg.data.encoder_length + decoder_length)))


def auto_warmup_steps(steps: int) -> int:
    """Warm-up of a run of `steps`: T5's 10,000, or a tenth of a shorter run."""
    return min(REFERENCE_WARMUP_STEPS, steps // 10)


def slots_per_token(moe: MoeConfig, group_tokens: int, *, train: bool) -> float:
    """E * C / S: buffer rows computed per token; far above the capacity factor when the minimum capacity dominates."""
    return moe.num_experts * expert_capacity(moe, group_tokens, train=train) / group_tokens


def resolve(cfg: RunConfig) -> RunConfig:
    """`cfg` with every derived field filled. Call after validation."""
    lengths = span_lengths(cfg.data)
    moe = replace(
        cfg.moe,
        group_sequences=cfg.moe.group_sequences or auto_group_sequences(cfg),
        decoder_sparse_every=(
            cfg.moe.sparse_every if cfg.moe.decoder_sparse_every is None else cfg.moe.decoder_sparse_every
        ),
    )
    model = replace(cfg.model, logit_scale="width" if scales_logits(cfg.model) else "one")
    data = replace(
        cfg.data,
        decoder_length=cfg.data.decoder_length or lengths.targets,
        # a run may be resumed or evaluated from another folder than the one it was started in
        files=_absolute(cfg.data.files),
        validation_files=_absolute(cfg.data.validation_files),
        hub_files=_absolute(cfg.data.hub_files),
        tokenizer=_absolute((cfg.data.tokenizer,))[0] if cfg.data.tokenizer else None,
    )
    parallel = replace(cfg.parallel, etp=topology(cfg).etp)
    steps = planned_steps(cfg)
    train = replace(
        cfg.train,
        eval_every=cfg.train.eval_every if cfg.train.eval_every is not None else max(1, steps // 10),
        save_every=cfg.train.save_every if cfg.train.save_every is not None else math.ceil(steps / 4),
    )
    warmup = cfg.schedule.warmup_steps if cfg.schedule.warmup_steps is not None else auto_warmup_steps(steps)
    schedule = replace(cfg.schedule, warmup_steps=warmup)
    return replace(cfg, model=model, moe=moe, data=data, parallel=parallel, train=train, schedule=schedule)


def _absolute(paths: tuple[str, ...]) -> tuple[str, ...]:
    """Paths or glob patterns, relative ones below the present folder; `~` is a user's home."""
    return tuple(os.path.abspath(os.path.expanduser(path)) for path in paths)
