"""Batches for a verification: random tokens with very uneven padding, cut for a rank the way the loader cuts them.

No tokenizer and no text is needed. Shape suffixes: B rows, L encoder length, T decoder length.
"""

from __future__ import annotations

import numpy as np

from conf.derived.groups import micro_batch_size
from conf.schema import RunConfig
from data.batch import UNK_ID, IntArray, MicroBatch, StepBatch

_STREAM = 0x7E58  # apart from every other use of the seed
_LEAST_SHARE = 0.05  # of its length that the emptiest row fills
_LEAST_TOKENS = 2


def global_rows(cfg: RunConfig, step: int) -> tuple[IntArray, IntArray]:
    """Encoder tokens [B, L] and targets [B, T] of the whole global batch of `step`."""
    generator = np.random.default_rng([_STREAM, cfg.seed, step])
    rows, decoder_length = cfg.train.global_batch, cfg.data.decoder_length

    def tokens(length: int) -> IntArray:
        ids = generator.integers(UNK_ID + 1, cfg.model.vocab_size, size=(rows, length))
        # From nearly empty to full, the short ones together, so that ranks and micro-batches differ as much as can be.
        real = np.maximum(_LEAST_TOKENS, (np.linspace(_LEAST_SHARE, 1.0, rows) * length).astype(int))
        return np.where(np.arange(length)[None, :] < real[:, None], ids, 0)

    return tokens(cfg.data.encoder_length), tokens(decoder_length)


def step_batch(cfg: RunConfig, step: int, *, dp_rank: int) -> StepBatch:
    """The share of a data-parallel rank: `accumulation` micro-batches of consecutive rows (ADR 001)."""
    encoder_BL, targets_BT = global_rows(cfg, step)
    size = micro_batch_size(cfg)
    micro: list[MicroBatch] = []
    for index in range(cfg.train.accumulation):
        rows_B = np.arange(size) + (dp_rank * cfg.train.accumulation + index) * size
        micro.append(MicroBatch(inputs_BL=encoder_BL[rows_B], targets_BT=targets_BT[rows_B], rows_B=rows_B))
    return StepBatch(step=step, epoch=0.0, micro=tuple(micro))
