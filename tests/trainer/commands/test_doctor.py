"""The doctor reports; it does not fall over."""

import os
import subprocess
import sys

import pytest

from conf.errors import ConfigError
from launch import cli
from tests.harness import run_ranks
from trainer.commands import doctor, exchange_check


def test_versions_and_devices_are_listed(capsys):
    assert cli.run(["doctor", "--no-exchange"]) == 0
    out = capsys.readouterr().out
    for word in ("torch", "deepspeed", "megatron-core", "gloo", "cpu"):
        assert word in out


def test_a_failed_exchange_is_told_with_its_last_words(monkeypatch, capsys):
    def fail(command, **settings):
        return subprocess.CompletedProcess(command, 1, stdout="", stderr="rank 1: connection refused")

    monkeypatch.setattr(doctor.subprocess, "run", fail)
    assert cli.run(["doctor"]) == 1
    assert "connection refused" in capsys.readouterr().out


def test_a_hanging_exchange_is_told(monkeypatch):
    def hang(command, *, timeout, **settings):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(doctor.subprocess, "run", hang)
    assert "FAILED: not done after" in doctor.exchange_lines(2, 16)[0]


@pytest.mark.parametrize(("gpus", "backend"), [(0, "gloo"), (1, "gloo"), (2, "nccl")])
def test_ranks_take_gpus_only_where_there_is_one_for_each(monkeypatch, gpus, backend):
    commands = []

    def note(command, **settings):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, stdout="all-to-all  fine", stderr="")

    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr(doctor.subprocess, "run", note)
    assert doctor.exchange_lines(2, 16) == ["all-to-all  fine"]
    assert commands[0][-1] == backend


def test_no_ranks_are_refused():
    for name in ("--ranks", "--nproc", "--mib"):
        with pytest.raises(ConfigError, match=r"^--(ranks|mib): got '0'; needs a whole number, at least 1"):
            cli.run(["doctor", name, "0"])


def _check(rank, world):
    os.environ |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    sys.argv = ["exchange_check", "1", "gloo"]
    return exchange_check.main()


def test_any_number_of_ranks_exchanges():
    assert run_ranks(_check, 3) == [0, 0, 0]
