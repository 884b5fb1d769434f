"""Evaluation: the same forwards on every rank, losses and routing over the held-out windows. Also `pointsman eval`."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from data.batch import StepBatch, token_masks
from data.corpus import Corpus
from model.t5.model import SwitchTransformer
from parallel import collectives
from parallel.types import ParallelGroups
from trainer.metrics import Meter, Report
from trainer.step import to_device


class EvaluationStopped(Exception):
    """`stop_asked` answered yes between two batches; nothing was measured."""


@torch.no_grad()
def evaluate(
    module: SwitchTransformer,
    batches: Iterable[StepBatch],
    meter: Meter,
    *,
    groups: ParallelGroups,
    device: torch.device,
    stop_asked: Callable[[], bool] | None = None,
) -> Report:
    """Losses and routing over `batches`, which hold equally many micro-batches on every rank (padding rows weigh 0).

    `stop_asked` must answer alike on every rank; a yes raises `EvaluationStopped` before the next batch.
    """
    for batch in batches:
        if stop_asked is not None and stop_asked():
            raise EvaluationStopped
        for micro in batch.micro:
            tensors = to_device(micro, device)
            output = module(
                tensors.encoder_tokens_BL, tensors.decoder_inputs_BT, tensors.targets_BT, mode="eval", noise=None
            )
            meter.add(output, tensors.targets_BT, None)
    return meter.reduce(groups)


def unigram_nats(corpus: Corpus, batches: Iterable[StepBatch], groups: ParallelGroups) -> float:
    """Unigram cross-entropy (nats) of the text tokens of every rank's `batches` together; the same on all ranks."""
    targets = np.concatenate([micro.targets_BT for batch in batches for micro in batch.micro])
    count = int(token_masks(targets, pieces=corpus.tokenizer.pieces).text.sum())
    nats = corpus.unigram_nats(targets) * count if count else 0.0
    # Tensor ranks hold the same tokens: both sums grow alike, and their ratio stays.
    total, tokens = collectives.all_reduce(torch.tensor([nats, count], dtype=torch.float64), groups.control).tolist()
    return total / tokens if tokens else math.nan


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = argparse.ArgumentParser(
        prog="pointsman eval",
        description="Evaluate a trained model on held-out text, in one process, whatever layout trained it.",
        epilog="example: pointsman eval runs/first data=text data.files='docs/*.jsonl' train.eval_batches=20",
    )
    result.add_argument("run", type=Path, help="run folder, or one checkpoint folder in it")
    result.add_argument("overrides", nargs="*", help="settings to change for the evaluation, e.g. other data")
    return result


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    arguments = parser().parse_args(argv)
    from data.corpus import open_corpus
    from data.loader import build_loader
    from data.prepare import prepare_data
    from trainer.loading import load_run
    from trainer.progress import PreparationView
    from trainer.routing_table import routing_table
    from trainer.session import layer_names
    from trainer.summary import learning_lines

    loaded = load_run(arguments.run, overrides=arguments.overrides)
    cfg, module = loaded.cfg, loaded.module
    view = PreparationView()
    prepare_data(cfg, progress=view.update)
    view.close()
    corpus = open_corpus(cfg)

    def batches(*, shuffled: bool = False) -> Iterator[StepBatch]:
        return build_loader(corpus, cfg, split="validation", dp_rank=0, dp_size=1, shuffled_inputs=shuffled)

    def report(*, shuffled: bool) -> Report:
        meter = Meter(pieces=corpus.tokenizer.pieces, layer_names=layer_names(cfg))
        return evaluate(module, batches(shuffled=shuffled), meter, groups=loaded.groups, device=loaded.device)

    straight = report(shuffled=False)
    unigram = unigram_nats(corpus, batches(), loaded.groups)
    print(f"{loaded.reader.path} at step {loaded.reader.state['step']}, {straight.tokens:,.0f} target tokens")
    print(
        "\n".join(learning_lines(first_loss=None, last=straight, unigram_nats=unigram, shuffled=report(shuffled=True)))
    )
    print(routing_table(straight, capacity_factor=cfg.moe.eval_capacity_factor))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
