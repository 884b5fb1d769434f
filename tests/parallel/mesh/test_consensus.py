"""One rank's flag stops all; unequal values are an error on every rank that tells who holds what."""

from __future__ import annotations

from pathlib import Path

import pytest

from conf.errors import RankDisagreement, SetupError
from parallel.mesh.axes import single_process
from parallel.mesh.consensus import agree, any_rank, on_main
from parallel.mesh.groups import init_groups
from tests.harness import run_ranks
from tests.settings import parallel_config


def decide(rank: int, world: int) -> str:
    mesh = init_groups(parallel_config())
    assert any_rank(rank == 1, mesh)
    assert not any_rank(False, mesh)
    agree("group size", {"sequences": 4, "share": float("nan")}, mesh)  # equal, though NaN is unequal to itself
    with pytest.raises(RankDisagreement) as caught:
        agree("newest checkpoint", 200 if rank == 2 else 300, mesh)
    return str(caught.value)


def test_all_ranks_decide_alike():
    texts = run_ranks(decide, 3)
    assert texts == ["newest checkpoint: ranks disagree: 300 on ranks 0, 1; 200 on rank 2"] * 3


def test_a_single_process_agrees_with_itself():
    assert any_rank(True, single_process())
    assert not any_rank(False, single_process())
    agree("anything", object, single_process())


def _write_on_main(rank: int, world: int, path: Path) -> str:
    mesh = init_groups(parallel_config(backend="auto"))
    try:
        on_main(lambda: path.write_text(f"rank {rank}"), mesh)
    except SetupError as error:
        return str(error)
    return path.read_text()


def test_rank_zero_works_alone_and_fails_for_all(tmp_path: Path) -> None:
    assert run_ranks(_write_on_main, 2, tmp_path / "file") == ["rank 0", "rank 0"]
    missing = tmp_path / "none" / "file"
    for message in run_ranks(_write_on_main, 2, missing):
        assert f"{missing} cannot be written: No such file" in message
