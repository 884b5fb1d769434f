"""How many ranks a run has on a machine where nobody says: as many as GPUs that divide well, two without any."""

from __future__ import annotations

import pytest
import torch

from conf import machine
from conf.compose import compose


@pytest.fixture
def machine_with(monkeypatch: pytest.MonkeyPatch, tmp_path):
    def equip(gpus: int) -> None:
        driver = tmp_path / "nvidiactl"
        if gpus:
            driver.touch()
        monkeypatch.setattr(machine, "_DRIVERS", (str(driver),))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.delenv("DS_ACCELERATOR", raising=False)

    return equip


@pytest.mark.parametrize(("gpus", "ranks"), [(0, 2), (1, 1), (2, 2), (3, 2), (4, 4), (7, 4), (8, 8)])
def test_a_plain_run_fits_the_machine(machine_with, gpus, ranks):
    machine_with(gpus)
    cfg = compose([])
    assert cfg.launch.nproc == ranks
    assert cfg.parallel.ep == ranks


def test_what_is_typed_or_started_wins(machine_with):
    machine_with(4)
    assert compose(["launch.nproc=2"]).launch.nproc == 2
    assert compose([], world=(1, 1)).launch.nproc == 1
    assert compose(["parallel.backend=gloo"]).launch.nproc == 2
    assert compose(["launch=slurm"]).launch.nproc == 8


def test_no_gpu_where_the_cpu_is_asked_for_or_torch_finds_none(machine_with, monkeypatch):
    machine_with(4)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert machine.gpus_at_hand() == 0
    machine_with(0)
    assert machine.gpus_at_hand() == 0
