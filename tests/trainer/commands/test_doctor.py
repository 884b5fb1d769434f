"""The doctor reports; it does not fall over."""

import pytest

from conf.errors import ConfigError, RanksFailed
from launch import cli
from launch.ranks.child import Seat
from tests.harness import run_ranks
from trainer.commands import doctor


def test_versions_and_devices_are_listed(capsys):
    assert cli.run(["doctor", "--no-exchange"]) == 0
    out = capsys.readouterr().out
    for word in ("torch", "deepspeed", "megatron-core", "gloo", "cpu"):
        assert word in out


class Pool:
    """In the place of a pool: notes what it is asked to run, and gives what it is told to."""

    asked, gives = (), ("cpu", 0.5)

    def __init__(self, size, **settings):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def run(self, function, *arguments, timeout_s):
        Pool.asked = arguments
        if isinstance(self.gives, Exception):
            raise self.gives
        return [self.gives, self.gives]


def test_a_failed_exchange_is_told_with_its_last_words(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "RankPool", Pool)
    monkeypatch.setattr(Pool, "gives", RanksFailed("rank 1 raised DistBackendError: connection refused"))
    assert cli.run(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert "FAILED" in printed
    assert "connection refused" in printed


@pytest.mark.parametrize(("gpus", "backend"), [(0, "gloo"), (1, "gloo"), (2, "nccl")])
def test_ranks_take_gpus_only_where_there_is_one_for_each(monkeypatch, gpus, backend):
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr(doctor, "RankPool", Pool)
    (line,) = doctor.exchange_lines(2, 1024)
    assert "2 ranks on cpu, 1024 MiB each: 500.0 ms, 1.00 GiB/s" in line
    assert Pool.asked == (1024, backend)


def test_no_ranks_are_refused():
    for name in ("--ranks", "--nproc", "--mib"):
        with pytest.raises(ConfigError, match=r"^--(ranks|mib): got '0'; needs a whole number, at least 1"):
            cli.run(["doctor", name, "0"])


def _check(rank, world, folder):
    return doctor.exchange(Seat(rank, world, f"{folder}/store"), 1, "gloo")


def test_any_number_of_ranks_exchanges(tmp_path):
    for device, seconds in run_ranks(_check, 3, str(tmp_path), backend=None):
        assert device == "cpu"
        assert 0 < seconds < 10
