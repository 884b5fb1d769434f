"""Rates of an interval, by arithmetic."""

import pytest
import torch

from conf.compose import compose
from conf.derived.estimate import flops_per_sequence
from parallel.mesh.axes import single_process
from trainer.report import throughput
from trainer.report.throughput import Throughput, peak_flops


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


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),  # not what the SXM board does
        ("NVIDIA H100 NVL", 835.5e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA A10G", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA A100-SXM-64GB", None),  # made for one customer
        ("NVIDIA H100", None),
        ("Tesla V100-SXM2-16GB", None),  # has no bf16
        ("", None),
    ],
)
def test_a_peak_belongs_to_one_exact_name(name, peak, monkeypatch):
    monkeypatch.setattr(throughput.torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda")) == peak
    assert peak_flops(torch.device("cpu")) is None
