"""The table of places where metrics go: each is a row, and a row without its package is refused before training."""

from dataclasses import replace

import pytest

from conf.compose import compose
from conf.errors import SetupError
from tests.trainer.report.sinks.openings import opening
from trainer.report import log as module
from trainer.report.log import SINKS, RunLog, check_sinks
from trainer.report.sinks.sink import SinkKind


class Recording:
    """A sink as docs/extending.md describes it."""

    def __init__(self, opening):
        self.path = opening.run.root / "recorded"

    def write(self, step, metrics):
        with self.path.open("a") as file:
            file.write(f"{step} {metrics['train/loss']}\n")

    def close(self, *, failed):
        with self.path.open("a") as file:
            file.write(f"failed {failed}\n")

    def where(self):
        return [f"  recorded           {self.path}"]


def test_a_sink_is_one_class_and_one_row(monkeypatch, tmp_path):
    monkeypatch.setitem(SINKS, "recording", SinkKind(open=Recording, wanted=lambda logging: True))
    log = RunLog(opening(tmp_path))
    log.write(1, {"train/loss": 2.0})
    log.close(failed=True)
    assert (tmp_path / "recorded").read_text() == "1 2.0\nfailed True\n"
    assert log.where()[-1] == f"  recorded           {tmp_path / 'recorded'}"


def test_other_ranks_record_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = RunLog()
    log.write(1, {"train/loss": 1.0})
    log.close()
    assert list(tmp_path.iterdir()) == []
    assert log.where() == []


@pytest.mark.parametrize(
    ("name", "override", "fix"),
    [
        ("TensorBoard", "logging.tensorboard=true", r"pip install 'pointsman\[tensorboard\]'"),
        ("Weights & Biases", "logging.wandb=offline", "logging.wandb=off"),
    ],
)
def test_an_absent_package_is_an_error_before_training(monkeypatch, name, override, fix):
    monkeypatch.setitem(module.SINKS, name, replace(SINKS[name], package="no_such_package"))
    with pytest.raises(SetupError, match=f"{name} needs the package no_such_package.*{fix}"):
        check_sinks(compose([override]).logging)
    check_sinks(compose(["logging.wandb=off"]).logging)
