"""One rank of a training run: `torchrun ... -m trainer.main <overrides>`, `deepspeed --module trainer.main ...`.

Of this project nothing is imported before `check_packages` has seen that it is this project's: `python -m` looks into
the working directory first.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conf.schema import RunConfig

_HEAD_START_S = 0.5


def main(argv: Sequence[str] | None = None) -> int:
    """Train. Returns the exit code: 0 done or stopped on request, 2 for something the user can mend."""
    _check_packages()
    from launch.process import guarded

    arguments = list(sys.argv[1:] if argv is None else argv)
    # DeepSpeed's launcher passes the local rank as a flag as well as in the environment.
    overrides = [argument for argument in arguments if not argument.startswith("--local_rank")]
    # Megatron-Core and torch warn at import about parts that are not used here; a run's terminal is for the run.
    for module in ("megatron", "torch", "deepspeed"):
        warnings.filterwarnings("ignore", module=rf"{module}(\..*)?")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    return guarded(lambda: _train(overrides))


def _check_packages() -> None:
    try:
        from launch.identity import check_packages
    except ImportError:  # `launch` itself is somebody else's
        import launch

        ours = Path(__file__).resolve().parent.parent / "launch"
        found = launch.__file__ or next(iter(launch.__path__))
        raise SystemExit(
            f"error: package 'launch': got {found}, which hides Pointsman's own {ours}; needs Pointsman's to come "
            "first; try another working directory, or export PYTHONSAFEPATH=1"
        ) from None
    check_packages()


def _train(overrides: list[str]) -> int:
    from conf.continued import compose_run, overrides_of
    from launch.memory import check_memory
    from launch.process import world_from_environment
    from trainer.report.log import check_sinks

    cfg = compose_run(overrides, world=world_from_environment())
    typed = overrides_of(overrides)  # now: the folder changes once the run has begun
    _require_name_for_restarts(cfg)
    check_memory(cfg)
    check_sinks(cfg.logging)
    _prepare(cfg)
    # Only now: torch takes seconds to import, and a typo in an override should not have to wait for it.
    import torch

    from parallel.mesh.groups import destroy_groups, init_groups
    from trainer.run import accounted, run_training

    if cfg.launch.threads_per_rank:
        torch.set_num_threads(cfg.launch.threads_per_rank)
    try:
        with accounted():
            return run_training(cfg, init_groups(cfg.parallel), typed)
    finally:
        destroy_groups()


def _require_name_for_restarts(cfg: RunConfig) -> None:
    restarts = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")
    if cfg.name is None and restarts != "0":
        from conf.errors import ConfigError

        raise ConfigError(
            "name",
            got=None,
            needs=f"a name, by which ranks that are restarted ({restarts} times) find the run's checkpoints",
            hint="name=first",
        )


def _prepare(cfg: RunConfig) -> None:
    """Tokenize what is not in the cache yet, before ranks meet: no collective has to outwait it.

    The cache's file lock lets one rank of a node work while the others wait; they start later, so that the first
    local rank, whose output a person sees, is the one that works.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if local_rank:
        time.sleep(_HEAD_START_S)
    from data.prepare import prepare_data
    from trainer.report.progress import PreparationView

    show = PreparationView() if os.environ.get("RANK", "0") == "0" else None
    prepare_data(cfg, progress=show.update if show else lambda text: None)
    if show:
        show.close()


if __name__ == "__main__":
    _check_packages()
    from launch.ranks.bound import die_with_launcher, is_bound, outlive_parent

    bound = die_with_launcher()  # before anything that takes time: it may be gone already
    from conf.safety.streams import redact_streams
    from launch.process import guarded
    from launch.ranks.surroundings import settle_rank

    def _begin() -> int:
        settle_rank(sys.argv[1:])
        if bound and not is_bound():  # what looked like one was left over
            outlive_parent()
        return main()

    redact_streams()
    sys.exit(guarded(_begin))
