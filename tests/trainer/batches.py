"""Random step batches with very uneven padding, cut for a rank the way the loader cuts them."""

import numpy as np

from conf.derive import micro_batch_size
from conf.schema import RunConfig
from data.batch import MicroBatch, StepBatch, decoder_inputs


def global_rows(cfg: RunConfig, step: int):
    """Encoder tokens and targets of the whole global batch of `step`."""
    generator = np.random.default_rng([7, step])
    rows = cfg.train.global_batch

    def tokens(length):
        array = generator.integers(3, cfg.model.vocab_size, size=(rows, length))
        # From nearly empty to full, the short ones together, so that ranks and micro-batches differ a lot.
        real = np.maximum(2, (np.linspace(0.05, 1.0, rows) * length).astype(int))
        array[np.arange(length)[None, :] >= real[:, None]] = 0
        return array

    return tokens(cfg.data.encoder_length), tokens(cfg.data.decoder_length)


def step_batch(cfg: RunConfig, step: int, *, dp_rank: int) -> StepBatch:
    """This data-parallel rank's share of the step."""
    encoder, targets = global_rows(cfg, step)
    size, micro = micro_batch_size(cfg), []
    for index in range(cfg.train.accumulation):
        rows = np.arange(size) + (dp_rank * cfg.train.accumulation + index) * size
        micro.append(
            MicroBatch(
                encoder_tokens_BL=encoder[rows],
                decoder_inputs_BT=decoder_inputs(targets[rows]),
                targets_BT=targets[rows],
                rows_B=rows,
            )
        )
    return StepBatch(step=step, epoch=0.0, micro=tuple(micro))
