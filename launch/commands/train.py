"""`pointsman train`: composes the configuration, then becomes the launcher of its ranks or submits them to Slurm."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from launch.commands.kinds import define
from launch.commands.parameters import takes_overrides


@define(
    notes="""\
    A run writes to runs/<name>/: config.yaml, metrics.jsonl, checkpoints/, the Weights & Biases run.
    Several nodes: give launch.nodes, launch.nproc and launch.rdzv_endpoint=HOST:PORT and run the command on each.""",
    examples=(
        "pointsman train                                              the small default, on Python's standard library",
        "pointsman train train.steps=200 launch.nproc=4 parallel.ep=4",
        "pointsman train data=text data.files='docs/*.jsonl' name=mine",
        "pointsman train model=switch_base_8 parallel.tp=2 parallel.ep=2 launch.nproc=4",
        "torchrun --nproc-per-node=2 -m trainer.main train.steps=200  with the launcher you have",
    ),
)
@takes_overrides()
def command(overrides: tuple[str, ...]) -> int:
    """Train a model: compose and check the configuration, then start launch.nproc ranks. Interrupt with Ctrl-C.

    The same command with the same name= continues the run from its last checkpoint (train.resume=auto).
    """
    return train(overrides)


def train(overrides: Sequence[str]) -> int:
    """Hand the run that `overrides` describe to its launcher; returns only where that has submitted it."""
    from conf.continued import compose_run
    from conf.launchers import LAUNCHERS

    cfg = compose_run(overrides, files="unchecked")  # the launcher knows on which machine they must be
    return importlib.import_module(LAUNCHERS[cfg.launch.launcher]).start(cfg, overrides)
