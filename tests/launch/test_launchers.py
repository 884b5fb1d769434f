"""A launcher is a file and a row: one that is registered here gets what `pointsman train` was told."""

import sys
from types import ModuleType

import pytest

from conf.compose import compose
from conf.errors import ConfigError
from conf.launchers import LAUNCHERS
from launch.commands.train import train


@pytest.fixture
def queue(monkeypatch):
    """A launcher that notes what it should start."""
    module, noted = ModuleType("queue_launcher"), []
    module.start = lambda cfg, overrides: noted.append((cfg, list(overrides))) or 7
    monkeypatch.setitem(sys.modules, "queue_launcher", module)
    monkeypatch.setitem(LAUNCHERS, "queue", "queue_launcher")
    return noted


def test_a_registered_launcher_is_handed_the_run(queue):
    words = ["launch.launcher=queue", "train.steps=3", "launch.nproc=1", "parallel.ep=1"]
    assert train(words) == 7
    [(cfg, overrides)] = queue
    assert overrides == words
    assert compose(overrides) == cfg  # what a rank composes from them


def test_an_unknown_launcher_is_named_with_those_there_are():
    with pytest.raises(ConfigError, match=r"launch\.launcher: got 'slrm'; needs one of local, slurm; try .*=slurm"):
        compose(["launch.launcher=slrm"])
