"""Tokens per second and model FLOPs utilisation over the interval since the last log row."""

from __future__ import annotations

import torch

from conf.derived.estimate import flops_per_sequence
from conf.schema import RunConfig
from parallel.mesh.axes import Mesh

# Dense bf16 peak in FLOP/s by the name that the driver gives a device, from NVIDIA's data sheets (which print twice as
# much, "with sparsity", for all but the A100). Names of one family differ in peak, so that only whole names count: a
# card, a MIG slice or a board of a single customer that is not here has no utilisation printed.
_PEAK_FLOPS = {
    "NVIDIA GB200": 2500e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA GH200 480GB": 989e12,
    "NVIDIA GH200 120GB": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H200 NVL": 835.5e12,
    "NVIDIA H100 80GB HBM3": 989e12,  # SXM
    "NVIDIA H100 NVL": 835.5e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L40": 181e12,
    "NVIDIA L4": 121e12,
    "NVIDIA A40": 149.7e12,
    "NVIDIA A30": 165e12,
    "NVIDIA A10": 125e12,
}


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 peak of one device, or None where it is not known (CPUs, other names)."""
    return _PEAK_FLOPS.get(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


class Throughput:
    """Sums over steps; `take` turns them into rates and starts anew."""

    def __init__(self, cfg: RunConfig, mesh: Mesh, device: torch.device) -> None:
        self._flops_per_sequence = flops_per_sequence(cfg)
        self._world = mesh.world.size
        self._peak = peak_flops(device)
        self.restart()

    def restart(self) -> None:
        """Forget the interval (it held an evaluation or a save)."""
        self._steps, self._tokens, self._sequences, self._seconds, self._waited_s = 0, 0, 0, 0.0, 0.0

    def add(self, *, tokens: int, sequences: int, seconds: float, waited_s: float) -> None:
        """Count one step; `waited_s` of its seconds were spent waiting for data."""
        self._steps += 1
        self._tokens += tokens
        self._sequences += sequences
        self._seconds += seconds
        self._waited_s += waited_s

    def take(self) -> dict[str, float]:
        """`perf/*` metrics of the interval."""
        seconds = max(self._seconds, 1e-9)
        flops = self._flops_per_sequence * self._sequences / seconds / self._world
        metrics = {
            "perf/tokens_per_second": self._tokens / seconds,
            "perf/step_seconds": seconds / max(self._steps, 1),
            "perf/data_wait_fraction": self._waited_s / seconds,
            "perf/tflops_per_rank": flops / 1e12,
        }
        if self._peak is not None:
            metrics["perf/mfu"] = flops / self._peak
        self.restart()
        return metrics
