"""Crashes, hangs and errors of one layout are told, and the next layout runs."""

import os
import signal
import time
from contextlib import contextmanager

import pytest

import tests.harness  # noqa: F401 - its server of forks, with everything imported, serves here too
from tests.measure.verify.tiny import plan, run


@contextmanager
def trouble(job):
    """By layout: rank 1 raises, dies, is killed or hangs; at other layouts nothing happens."""
    layout = (job.mesh.tp.size, job.cfg.parallel.zero)
    if job.mesh.world.rank == 1:
        if layout == (1, 0):
            raise ValueError("a planted error")
        if layout == (1, 1):
            time.sleep(600)
        if layout == (2, 0):
            os.kill(os.getpid(), signal.SIGKILL)
        if layout == (2, 1):
            os._exit(7)
    yield


def test_a_layout_that_raises_or_hangs_does_not_take_the_others_with_it():
    made = plan("dp=2 zero=0", "dp=2 zero=1", "dp=2 zero=2", ranks=2, steps=1, timeout_s=15.0)
    raised, hung, fine = run(made, trouble).values()
    assert raised.status == hung.status == "failed"
    assert raised.message.startswith("rank 1 raised ValueError: a planted error")
    assert "hung: no answer after 15 s" in hung.message
    assert fine.status == "equal", fine


@pytest.mark.slow
def test_a_layout_that_dies_does_not_take_the_others_with_it():
    made = plan("tp=2 zero=0", "tp=2 zero=1", "tp=2 zero=2", ranks=2, steps=1, timeout_s=60.0)
    killed, died, fine = run(made, trouble).values()
    assert killed.status == died.status == "failed"
    assert killed.message.startswith("rank 1 was killed by SIGKILL")
    assert died.message.startswith("rank 1 ended with exit code 7")
    assert fine.status == "equal", fine
