"""Sizes that no memory holds are told, before or when an allocator refuses them."""

from __future__ import annotations

import pytest
import torch

from conf.compose import compose
from conf.errors import ConfigError
from launch import memory
from launch.cli import main
from launch.memory import check_memory, out_of_memory
from launch.process import guarded, noted


def test_a_model_that_does_not_fit_is_refused_with_both_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "gpus_at_hand", lambda: 0)
    monkeypatch.setattr(memory, "available_memory", lambda: 2 * 2**30)
    check_memory(compose([]))
    with pytest.raises(
        ConfigError, match=r"^model: got 't5_large with .* at least 11\.\d GiB .* has 2\.0 GiB left; try"
    ):
        check_memory(compose(["model=t5_large", "moe=dense", "launch.nproc=2"]))
    monkeypatch.setattr(memory, "gpus_at_hand", lambda: 1)
    check_memory(compose(["model=t5_large", "moe=dense"]))  # it is not this memory that counts


def test_train_says_so_before_ranks_start(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("launch.local.become", lambda start: pytest.fail("ranks were started"))
    monkeypatch.setattr(memory, "gpus_at_hand", lambda: 0)
    assert main(["train", "model=switch_c_2048", "launch.nproc=1"]) == 2
    assert capsys.readouterr().err.startswith("error: model: got 'switch_c_2048 with ")


@pytest.mark.parametrize(
    "refused", [lambda: torch.empty(2**58), lambda: bytearray(2**60), lambda: torch.empty(2**40, 2**40)]
)
def test_an_allocator_s_refusal_is_no_traceback(refused: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(refused)

    def work() -> int:
        with noted():  # as a run does within `guarded`
            return refused() and 0

    assert guarded(work) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: memory: ")
    assert text.count("; try a smaller model") == 1
    assert text.count("\n") == 1


def test_other_errors_are_left_alone() -> None:
    assert out_of_memory(RuntimeError("shapes differ")) is None
    assert out_of_memory(ValueError("out of memory")) is None
