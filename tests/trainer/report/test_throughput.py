"""Rates of an interval, by arithmetic."""

import pytest
import torch

from conf.compose import compose
from conf.derived.estimate import flops_per_sequence
from parallel.mesh.axes import single_process
from trainer.report.throughput import Throughput


def test_rates_of_two_steps_and_a_fresh_start():
    cfg = compose([])
    throughput = Throughput(cfg, single_process(), torch.device("cpu"))
    throughput.add(tokens=100, sequences=4, seconds=1.0, waited_s=0.25)
    throughput.add(tokens=200, sequences=4, seconds=3.0, waited_s=0.75)
    rates = throughput.take()
    assert rates["perf/tokens_per_second"] == pytest.approx(75.0)
    assert rates["perf/step_seconds"] == pytest.approx(2.0)
    assert rates["perf/data_wait_fraction"] == pytest.approx(0.25)
    assert rates["perf/tflops_per_rank"] == pytest.approx(flops_per_sequence(cfg) * 8 / 4.0 / 1e12)
    assert "perf/mfu" not in rates  # the peak of a CPU is not known
    throughput.add(tokens=10, sequences=1, seconds=1.0, waited_s=0.0)
    assert throughput.take()["perf/tokens_per_second"] == pytest.approx(10.0)
