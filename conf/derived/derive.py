"""`resolve` fills every derived field of a configuration once; everything downstream sees the same numbers."""

from __future__ import annotations

import math
import os
from dataclasses import fields
from typing import Any, TypeVar

from conf.derived.groups import auto_group_sequences
from conf.schema import (
    DataConfig,
    ModelConfig,
    MoeConfig,
    ParallelConfig,
    RawDataConfig,
    RawRunConfig,
    RawTrainConfig,
    RunConfig,
    ScheduleConfig,
    TrainConfig,
)
from conf.tasks.table import window_lengths

REFERENCE_WARMUP_STEPS = 10_000
Filled = TypeVar("Filled")


def planned_steps(train: RawTrainConfig, data: DataConfig) -> int:
    """Optimizer steps of the whole run; from a token limit alone, the count at full windows."""
    if train.steps is not None:
        return train.steps
    assert train.tokens is not None, "validation asks for steps or tokens"
    return math.ceil(train.tokens / (train.global_batch * (data.encoder_length + data.decoder_length)))


def auto_warmup_steps(steps: int) -> int:
    """Warm-up of a run of `steps`: T5's 10,000, or a tenth of a shorter run."""
    return min(REFERENCE_WARMUP_STEPS, steps // 10)


def resolve(raw: RawRunConfig) -> RunConfig:
    """`raw` with every derived field filled; ranges of single fields hold (`conf.rules.validate`)."""
    model, moe, parallel, train, schedule = raw.model, raw.moe, raw.parallel, raw.train, raw.schedule
    data = _resolve_data(raw.data)
    steps = planned_steps(train, data)
    return _filled(
        RunConfig,
        raw,
        model=_filled(
            ModelConfig, model, logit_scale=_given(model.logit_scale, "width" if model.tie_embeddings else "one")
        ),
        moe=_filled(
            MoeConfig,
            moe,
            group_sequences=_given(moe.group_sequences, auto_group_sequences(raw)),
            decoder_sparse_every=_given(moe.decoder_sparse_every, moe.sparse_every),
        ),
        data=data,
        parallel=_filled(ParallelConfig, parallel, etp=_given(parallel.etp, parallel.tp)),
        train=_filled(
            TrainConfig,
            train,
            eval_every=_given(train.eval_every, max(1, steps // 10)),
            save_every=_given(train.save_every, math.ceil(steps / 4)),
        ),
        schedule=_filled(
            ScheduleConfig, schedule, warmup_steps=_given(schedule.warmup_steps, auto_warmup_steps(steps))
        ),
    )


def _resolve_data(data: RawDataConfig) -> DataConfig:
    # a run may be resumed or evaluated from another folder than the one it was started in
    return _filled(
        DataConfig,
        data,
        decoder_length=_given(data.decoder_length, window_lengths(data).targets),
        files=_absolute(data.files),
        validation_files=_absolute(data.validation_files),
        hub_files=_absolute(data.hub_files),
        tokenizer=_absolute((data.tokenizer,))[0] if data.tokenizer else None,
    )


def _filled(kind: type[Filled], raw: Any, **derived: Any) -> Filled:
    return kind(**{field.name: getattr(raw, field.name) for field in fields(raw)} | derived)


def _given(value: Any, derived: Any) -> Any:
    return derived if value is None else value


def _absolute(paths: tuple[str, ...]) -> tuple[str, ...]:
    """Paths or glob patterns, relative ones below the present folder; `~` is a user's home."""
    return tuple(os.path.abspath(os.path.expanduser(path)) for path in paths)
