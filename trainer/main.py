"""One rank of a training run: `torchrun ... -m trainer.main <overrides>`, `deepspeed --module trainer.main ...`."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from conf.errors import PointsmanError
from conf.identity import check_packages


def world_from_environment() -> tuple[int, int] | None:
    """(world size, ranks on this node) as torchrun and DeepSpeed set them; None when started by hand."""
    if "WORLD_SIZE" not in os.environ:
        return None
    world = int(os.environ["WORLD_SIZE"])
    return world, int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or world)


def main(argv: Sequence[str] | None = None) -> int:
    """Train. Returns the exit code: 0 done or stopped on request, 2 for something the user can mend."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # DeepSpeed's launcher passes the local rank as a flag as well as in the environment.
    overrides = [argument for argument in arguments if not argument.startswith("--local_rank")]
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        check_packages()
        return _train(overrides)
    except PointsmanError as error:
        if os.environ.get("POINTSMAN_DEBUG"):
            raise
        rank = os.environ.get("RANK", "0")
        print(f"pointsman: rank {rank}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 2


def _train(overrides: list[str]) -> int:
    from conf.compose import compose

    cfg = compose(overrides, world=world_from_environment())
    # Only now: torch takes seconds to import, and a typo in an override should not have to wait for it.
    import torch

    from parallel.groups import destroy_groups, init_groups

    if cfg.launch.threads_per_rank:
        torch.set_num_threads(cfg.launch.threads_per_rank)
    groups = init_groups(cfg.parallel)
    try:
        from trainer.run import run_training

        return run_training(cfg, groups)
    finally:
        destroy_groups()


if __name__ == "__main__":
    sys.exit(main())
