"""One rank of a benchmark: `python -m measure.speed.rank WHAT FILE ROUNDS THREADS OVERRIDES...`; rank 0 writes FILE."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from conf.compose import compose
from launch.process import die_with_parent, guarded, noted, world_from_environment
from measure.speed import exchange, step
from measure.speed.result import Row
from measure.speed.setup import Settings
from parallel.mesh.axes import Mesh

BENCHMARKS: dict[str, Callable[[Settings, Mesh], Iterator[Row]]] = {
    "step": step.run,
    "exchange": exchange.run,
}


def main(argv: Sequence[str]) -> int:
    """Measure; exit code 2 for a configuration that the benchmark refuses."""
    for module in ("megatron", "torch", "deepspeed"):
        warnings.filterwarnings("ignore", module=rf"{module}(\..*)?")
    return guarded(lambda: _measure(*argv[:4], overrides=tuple(argv[4:])))


def _measure(what: str, out: str, rounds: str, threads: str, *, overrides: tuple[str, ...]) -> int:
    import torch

    from parallel.mesh.groups import destroy_groups, init_groups
    from trainer.device import local_device, make_repeatable

    torch.set_num_threads(int(threads))
    cfg = compose(overrides, world=world_from_environment())
    try:
        with noted():
            mesh = init_groups(cfg.parallel)
            device = local_device(cfg)
            make_repeatable(device)  # as in a training run
            settings = Settings(cfg=cfg, overrides=overrides, device=device, rounds=int(rounds), threads=int(threads))
            rows = [row.to_json() for row in BENCHMARKS[what](settings, mesh)]
            if mesh.is_main:
                Path(out).write_text(json.dumps(rows), encoding="utf-8")
    finally:
        destroy_groups()
    return 0


if __name__ == "__main__":
    die_with_parent()
    sys.exit(main(sys.argv[1:]))
