"""Arguments and environment of the ranks' launcher."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest

from conf.errors import ConfigError
from conf.schema import LaunchConfig
from launch.torchrun import (
    rank_environment,
    rendezvous_of,
    threads_per_rank,
    torchrun_arguments,
)
from tests.settings import LAUNCH


def launch(**changes: Any) -> LaunchConfig:
    return replace(LAUNCH, **changes)


def test_one_node_arguments() -> None:
    got = torchrun_arguments(launch(nproc=3), ["train.steps=5"], rendezvous=None, log_dir="/logs")
    assert got == [
        "--nnodes=1",
        "--nproc-per-node=3",
        "--standalone",
        "--max-restarts=0",
        "--log-dir=/logs",
        "--redirects=1:3,2:3",  # local rank 0 keeps the terminal
        "-m",
        "trainer.main",
        "train.steps=5",
    ]


def test_two_nodes_meet_at_the_endpoint() -> None:
    cfg = launch(nodes=2, rdzv_endpoint="first:29500")
    got = torchrun_arguments(cfg, [], rendezvous=rendezvous_of(cfg, "my-run"), log_dir="/logs")
    assert "--standalone" not in got
    assert {"--nnodes=2", "--rdzv-backend=c10d", "--rdzv-endpoint=first:29500", "--rdzv-id=my-run"} <= set(got)


def test_several_nodes_without_endpoint_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"launch\.rdzv_endpoint: got None; needs host:port.*2 nodes"):
        rendezvous_of(launch(nodes=2), "my-run")


def test_threads_configured_then_inherited_then_a_share_of_the_cores() -> None:
    cores = len(os.sched_getaffinity(0))
    assert threads_per_rank(launch(threads_per_rank=3), {"OMP_NUM_THREADS": "5"}) == 3
    assert threads_per_rank(launch(), {"OMP_NUM_THREADS": "5"}) == 5
    assert threads_per_rank(launch(nproc=1), {}) == cores
    assert threads_per_rank(launch(nproc=10 * cores), {}) == 1


def test_store_is_not_shared_when_ranks_may_restart() -> None:
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE" not in rank_environment(launch(), {})
    assert rank_environment(launch(max_restarts=1), {})["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
