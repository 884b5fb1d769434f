"""Token counts and the request to stop reach every rank in one reduction."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from conf.compose import compose
from data.batch import MicroBatch, StepBatch
from parallel.mesh.axes import single_process
from tests.harness import run_ranks
from tests.measure.verify.tiny import TINY
from trainer.report.metrics import Meter
from trainer.session import build_initialised
from trainer.step import StepCounts, count_tokens, train_step


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


class Reads(TorchDispatchMode):
    """Counts operations whose result the host must have before it can go on."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "_unique2", "equal", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        if name in self.WAITING:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
@pytest.mark.parametrize("capacity", ["bounded", "dropless"])
def test_a_step_waits_for_the_device_to_know_that_all_is_finite_and_for_the_norm(capacity, optimizer):
    """Forward and backward never do: that they run under fake tensors with every router is tested beside the model.

    The third is the sum of the ranks' answers, on the control group and so on the CPU.
    """
    cfg = compose(
        [
            *TINY,
            f"moe.capacity={capacity}",
            f"optim={optimizer}",
            "parallel.zero=0",
            "launch.nproc=1",
            "optim.clip_norm=1.0",
        ]
    )
    mesh, device = single_process(), torch.device("cpu")
    engine = build_initialised(cfg, mesh, device)
    draw = np.random.default_rng(3)
    micro = MicroBatch(
        inputs_BL=draw.integers(2, 200, (4, 6)), targets_BT=draw.integers(2, 200, (4, 5)), rows_B=np.arange(4)
    )
    for _ in range(2):  # the optimizer's state is made in the first
        with Reads() as reads:
            train_step(
                engine, StepBatch(step=0, epoch=0.0, micro=(micro,)), Meter(kinds={}, layer_names=()), lr=0.01,
                stop=False, cfg=cfg, mesh=mesh, device=device,
            )  # fmt: skip
    assert reads.found == {"_local_scalar_dense": 3}
