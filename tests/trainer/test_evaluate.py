"""The unigram yardstick covers the held-out text of all ranks, however unevenly it is spread."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data.batch import MicroBatch, StepBatch
from data.text.vocabulary import appended
from parallel.mesh.axes import single_process
from tests.harness import run_ranks
from trainer.evaluate import EvaluationStopped, evaluate, unigram_nats

NATS = np.array([0.0, 0.0, 0.0, 1.0, 2.0, 4.0])  # of each id; 3 to 5 are text, 6 and up sentinels


class Corpus:
    tokenizer = SimpleNamespace(vocabulary=appended(6, 4))

    def unigram_nats(self, targets):
        text = targets[(targets > 1) & (targets < 6)]
        return float(NATS[text].mean()) if text.size else math.nan


def batches(targets):
    array = np.array(targets)
    micro = MicroBatch(inputs_BL=array, targets_BT=array, rows_B=np.arange(len(array)))
    return [StepBatch(step=0, epoch=0.0, micro=(micro,))]


SHARES = ([[7, 3, 3, 3], [7, 4, 5, 1]], [[7, 5, 0, 0], [0, 0, 0, 0]])


def _on_ranks(rank, world, shares):
    from conf.compose import compose
    from parallel.mesh.groups import init_groups

    mesh = init_groups(compose(["parallel=data", "moe=dense"]).parallel)
    return unigram_nats(Corpus(), batches(shares[rank]), mesh)


def test_every_rank_has_the_mean_over_all_tokens():
    whole = (1 + 1 + 1 + 2 + 4 + 4) / 6
    assert unigram_nats(Corpus(), batches(SHARES[0] + SHARES[1]), single_process()) == pytest.approx(whole)
    assert run_ranks(_on_ranks, 2, SHARES) == pytest.approx([whole, whole])


def test_a_rank_of_padding_alone_does_not_spoil_it():
    assert run_ranks(_on_ranks, 2, ([[7, 3, 1, 0]], [[0, 0, 0, 0]])) == [1.0, 1.0]
    assert math.isnan(unigram_nats(Corpus(), batches([[7, 1, 0, 0]]), single_process()))


def test_a_stop_is_obeyed_between_two_batches():
    answers, seen = iter([False, True]), []

    def module(*arguments, **settings):
        seen.append(arguments)

    meter = SimpleNamespace(add=lambda *arguments: None, reduce=lambda groups: pytest.fail("measured half a split"))
    with pytest.raises(EvaluationStopped):
        evaluate(
            module,
            batches([[7, 3, 1, 0]]) * 3,
            meter,
            mesh=single_process(),
            device=torch.device("cpu"),
            stop_asked=lambda: next(answers),
        )
    assert len(seen) == 1
