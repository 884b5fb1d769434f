"""`train.compile`: training steps run by torch.compile."""

from __future__ import annotations

import functools
import os
import shutil
import sys
from pathlib import Path

import torch

from conf.errors import ConfigError
from conf.schema import RunConfig
from model.contract import Model

CACHE = "TORCHINDUCTOR_CACHE_DIR"
GRAPHS = 64  # kinds of blocks that may be compiled before torch gives up on compiling; its default is 8


def compile_steps(module: Model, cfg: RunConfig, device: torch.device) -> None:
    """Compile what `train.compile` says; nothing is compiled before the first step. Raises ConfigError."""
    if cfg.train.compile == "off":
        return
    _require_compiler(device)
    os.environ.setdefault(CACHE, str(Path(cfg.data.cache_dir).expanduser() / "compiled"))
    import torch._dynamo as dynamo

    dynamo.config.recompile_limit = max(GRAPHS, dynamo.config.recompile_limit)
    # Collectives with a gradient are not traced: the graph ends before them and another begins. On one rank nothing
    # ends a graph but what `measure.verify` watches.
    compiler = functools.partial(torch.compile, dynamic=False)
    module.compile_steps(compiler, whole=cfg.train.compile == "model")


def compile_seconds() -> float:
    """What this process has spent on compiling, forward and backward graphs."""
    if "torch._dynamo.utils" not in sys.modules:
        return 0.0
    from torch._dynamo.utils import calculate_time_spent

    return calculate_time_spent().get("total_wall_time", 0.0)


def _require_compiler(device: torch.device) -> None:
    """On a CPU torch turns graphs into C++."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]
    if device.type == "cpu" and not any(shutil.which(name) for name in names):
        raise ConfigError(
            "train.compile",
            got="no C++ compiler on this machine",
            needs=f"{' or '.join(names)} on PATH",
            hint="apt-get install g++, or train.compile=off",
        )
