"""Benchmarks that build an engine or another library's layer in this process leave no process group to other tests."""

import sys

import pytest


@pytest.fixture(autouse=True)
def _no_group_is_left():
    yield
    if "torch" in sys.modules:
        from parallel.engine.expert_groups import release_groups
        from parallel.mesh.groups import destroy_groups

        release_groups()
        destroy_groups()
