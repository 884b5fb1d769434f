"""Tokens per second and model FLOPs utilisation over the interval since the last log row."""

from __future__ import annotations

import torch

from conf.derived.estimate import flops_per_sequence
from conf.schema import RunConfig
from parallel.mesh.axes import Mesh

# Dense bf16 peak of common accelerators in FLOP/s, from the vendors' data sheets; MFU is left out for any other.
_PEAK_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A10": 125e12,
    "V100": 125e12,
}


def peak_flops(device: torch.device) -> float | None:
    """Peak of one device, or None where it is not known (CPUs, other cards)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in _PEAK_FLOPS.items() if key in name), None)


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
