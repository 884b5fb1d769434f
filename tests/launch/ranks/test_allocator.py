"""The allocator of ranks: set for every way in which they start, and left alone where the user has chosen."""

from __future__ import annotations

import os
import platform

import pytest

from launch.ranks.allocator import TUNABLES, VARIABLE, allocator_environment, allocator_line, users_choice
from launch.ranks.child import Seat
from launch.ranks.environment import clean_environment
from launch.ranks.pool import RankPool
from launch.torchrun import rank_environment
from tests.launch.test_torchrun import launch

glibc_alone = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")


@glibc_alone
def test_ranks_get_it() -> None:
    assert rank_environment(launch(), {})[VARIABLE] == TUNABLES
    assert TUNABLES in allocator_line({})


@pytest.mark.parametrize(
    "chosen",
    [{VARIABLE: "glibc.malloc.check=3"}, {VARIABLE: ""}, {"LD_PRELOAD": "libjemalloc.so"}, {"MALLOC_ARENA_MAX": "2"}],
)
def test_the_users_choice_is_left_alone(chosen: dict[str, str]) -> None:
    (name, value) = next(iter(chosen.items()))
    assert users_choice(chosen) == f"{name}={value}"
    assert allocator_environment(chosen) == {}
    assert rank_environment(launch(), chosen).get(VARIABLE) == chosen.get(VARIABLE)
    assert f"{name}={value}" in allocator_line(chosen)


def test_an_empty_preload_is_no_choice() -> None:
    assert users_choice({"LD_PRELOAD": "", "MALLOC_ARENA_MAX": "", "PATH": "/bin"}) is None


def test_another_c_library_gets_nothing(monkeypatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert allocator_environment({}) == {}
    assert "not glibc" in allocator_line({})


def started_with(seat: Seat) -> str:
    """What the kernel was given when this process's program started, which os.environ no longer tells."""
    with open("/proc/self/environ") as file:
        return file.read().replace("\0", ":")  # as glibc does between the settings it has read


@glibc_alone
def test_a_new_rank_has_it_before_its_program_runs(monkeypatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    environment = clean_environment(os.environ) | {VARIABLE: TUNABLES}
    with RankPool(1, environment=environment, preload=(), start="spawn") as pool:
        assert f"{VARIABLE}={TUNABLES}:" in pool.run(started_with)[0]
    assert VARIABLE not in os.environ
