"""Settings shared by all tests: one thread per process and no network trackers."""

from __future__ import annotations

import os

# Before torch is imported anywhere: the tests run several ranks on few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("HYDRA_FULL_ERROR", "1")
