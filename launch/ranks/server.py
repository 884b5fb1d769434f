"""The server that ranks are forked from: what is slow to import is imported once, and a rank starts in 0.1 s."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from multiprocessing import forkserver

# What training needs and is slow to import. None of it starts threads, which a fork would lose.
TRAINING = ("torch", "torch.distributed", "megatron.core.parallel_state", "megatron.core.tensor_parallel", "deepspeed",
            "deepspeed.runtime.zero.muon.muon_optimizer")  # fmt: skip  # ZeRO imports it, and with it torch._dynamo


def start_server(preload: Sequence[str]) -> None:
    """Start this process's server unless it runs; its imports go on while the caller does something else.

    There is one server in a process: of several callers the first says what it imports.
    """
    multiprocessing.set_forkserver_preload(list(preload))
    shown = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = "ignore"  # what libraries say on import is no news, and would land in our output
    try:
        forkserver.ensure_running()
    finally:
        del os.environ["PYTHONWARNINGS"]
        if shown is not None:
            os.environ["PYTHONWARNINGS"] = shown
