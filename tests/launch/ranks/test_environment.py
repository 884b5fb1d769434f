"""The environment of what a command starts: nothing of an outer launcher, and our packages first."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

from launch.identity import ROOT
from launch.ranks.environment import clean_environment, module_search_path

OUTER = {"RANK": "3", "WORLD_SIZE": "8", "MASTER_PORT": "1", "TORCHELASTIC_USE_AGENT_STORE": "True", "HOME": "/home/me"}


def test_environment_is_cleaned_of_an_outer_launcher() -> None:
    env = clean_environment(OUTER)
    assert "HOME" in env
    assert not (OUTER.keys() - {"HOME"}) & env.keys()
    assert env["PYTHONSAFEPATH"] == "1"


def test_search_path_puts_a_checkout_first_and_leaves_an_installation_alone() -> None:
    assert module_search_path("/theirs") == f"{ROOT}{os.pathsep}/theirs"
    assert module_search_path("/theirs", root=Path(sysconfig.get_paths()["purelib"]).resolve()) is None
