"""Token counts and the request to stop reach every rank in one reduction."""

import numpy as np

from data.batch import MicroBatch, StepBatch
from parallel.mesh.axes import single_process
from tests.harness import run_ranks
from trainer.step import StepCounts, count_tokens


def batch(encoder, targets):
    def micro(row):
        source, target = np.array([encoder[row]]), np.array([targets[row]])
        return MicroBatch(inputs_BL=source, targets_BT=target, rows_B=np.array([row]))

    return StepBatch(step=0, epoch=0.0, micro=tuple(micro(row) for row in range(len(encoder))))


ROWS = batch([[5, 6, 1], [7, 1, 0]], [[9, 1], [0, 0]])  # 5 encoder tokens, 2 targets in two micro-batches


def test_one_process():
    assert count_tokens(ROWS, single_process()) == StepCounts(inputs=5, targets=2, stop=False)


def _count(rank, world, tp, stopping):
    from conf.compose import compose
    from parallel.mesh.groups import init_groups

    layout = ["moe=dense", f"parallel.tp={tp}", "launch.nproc=2"]
    counts = count_tokens(ROWS, init_groups(compose(layout).parallel), stop=rank == stopping)
    return counts.targets, counts.inputs, counts.stop


def test_data_ranks_add_up_and_hear_of_a_stop_on_any():
    assert run_ranks(_count, 2, 1, 1) == [(4, 10, True)] * 2


def test_tensor_ranks_hold_the_same_rows():
    assert run_ranks(_count, 2, 2, None) == [(2, 5, False)] * 2
