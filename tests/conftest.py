"""Settings shared by all tests: one thread per process and no network trackers."""

from __future__ import annotations

import os
import sys

import pytest

# Before torch is imported anywhere: the tests run several ranks on few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("HYDRA_FULL_ERROR", "1")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the harness's fork server now, so that its imports overlap with tests that need one process."""
    if session.items and "tests.harness" in sys.modules:
        sys.modules["tests.harness"].start_server()


@pytest.fixture(autouse=True)
def _subnormal_numbers():
    """A test that sets up a device for training flushes them for the whole process; hypothesis will not have that."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)
