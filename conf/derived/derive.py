"""Quantities that follow from a configuration by arithmetic, and `resolve`, which fills every derived field once.

After `resolve` no field that says "None: ..." in the schema is `None`, except those that mean "absent"; everything
downstream, the checkpoint included, sees the same numbers.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace

from conf.derived.groups import auto_group_sequences
from conf.derived.topology import topology
from conf.derived.windows import span_lengths
from conf.schema import ModelConfig, RunConfig

REFERENCE_WARMUP_STEPS = 10_000


def scales_logits(model: ModelConfig) -> bool:
    """Whether the decoder's output is multiplied by d_model**-0.5 before the logits: T5 does where it ties them."""
    return model.tie_embeddings if model.logit_scale is None else model.logit_scale == "width"


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
