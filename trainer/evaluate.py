"""Evaluation: the same forwards on every rank, losses and routing over the held-out windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch

from data.batch import StepBatch
from data.corpus import Corpus
from data.tasks.task import text_kind
from model.contract import Model
from parallel.mesh import collectives
from parallel.mesh.axes import Mesh
from trainer.report.metrics import Meter, Report
from trainer.step import to_device


class EvaluationStopped(Exception):
    """`stop_asked` answered yes between two batches; nothing was measured."""


@torch.no_grad()
def evaluate(
    module: Model,
    batches: Iterable[StepBatch],
    meter: Meter,
    *,
    mesh: Mesh,
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
            output = module(tensors.inputs_BL, tensors.targets_BT, mode="eval", noise=None)
            meter.add(output, tensors.targets_BT, None)
    return meter.reduce(mesh)


def unigram_nats(corpus: Corpus, batches: Iterable[StepBatch], mesh: Mesh) -> float:
    """Unigram cross-entropy (nats) of the text tokens of every rank's `batches` together; the same on all ranks."""
    targets = np.concatenate([micro.targets_BT for batch in batches for micro in batch.micro])
    count = int(text_kind(corpus.tokenizer.vocabulary).mask(targets).sum())
    nats = corpus.unigram_nats(targets) * count if count else 0.0
    # Tensor ranks hold the same tokens: both sums grow alike, and their ratio stays.
    total, tokens = collectives.all_reduce(torch.tensor([nats, count], dtype=torch.float64), mesh.control).tolist()
    return total / tokens if tokens else math.nan
