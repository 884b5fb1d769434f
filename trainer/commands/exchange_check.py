"""One rank of the doctor's all-to-all check: correctness first, then bandwidth."""

from __future__ import annotations

import statistics
import sys
import time

import torch

from conf.compose import compose
from launch.process import world_from_environment
from parallel.mesh import collectives
from parallel.mesh.axes import Axis
from parallel.mesh.groups import destroy_groups, init_groups
from trainer.device import local_device

_ROUNDS = 7


def timed_exchange(axis: Axis, device: torch.device, mib: int) -> float:
    """Median seconds of one all-to-all of `mib` MiB per rank; asserts that every block came from the right rank."""
    rows = axis.size
    sent = torch.full((rows, mib * 2**20 // 4 // rows), float(axis.rank), device=device)
    received = collectives.all_to_all(sent, axis)
    expected = torch.arange(rows, dtype=torch.float32, device=device)
    assert torch.equal(received[:, 0], expected), f"rank {axis.rank} received {received[:, 0].tolist()}"
    seconds = []
    for _ in range(_ROUNDS):
        collectives.barrier(axis)
        began = time.perf_counter()
        collectives.all_to_all(sent, axis)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def main() -> int:
    """Time the exchange over all ranks; rank 0 prints."""
    mib, backend = int(sys.argv[1]), sys.argv[2]
    world = world_from_environment()
    # A dense model and one sequence per rank: no number of ranks is refused for what the check does not use.
    settings = ["parallel=data", "model.moe=dense", f"train.global_batch={world[0]}", f"parallel.backend={backend}"]
    cfg = compose(settings, world=world)
    mesh = init_groups(cfg.parallel)
    device = local_device(cfg)
    seconds = timed_exchange(mesh.world, device, mib)
    if mesh.is_main:
        leaving = mib * (mesh.world.size - 1) / mesh.world.size
        print(
            f"all-to-all      {mesh.world.size} ranks on {device.type}, {mib} MiB each: {seconds * 1e3:.1f} ms, "
            f"{leaving / 1024 / seconds:.2f} GiB/s out of each rank",
            flush=True,
        )
    destroy_groups()
    return 0


if __name__ == "__main__":
    sys.exit(main())
