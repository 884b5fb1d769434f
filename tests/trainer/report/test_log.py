"""metrics.jsonl is complete and survives kills; W&B never stands in the way."""

import json
import sys
import types

import pytest

from conf.compose import compose
from conf.errors import SetupError
from trainer.report.log import JsonlSink, RunLog, wandb_mode
from trainer.run_dir import RunDir


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_one_object_a_line_with_step_and_flat_names(tmp_path):
    sink = JsonlSink(tmp_path / "metrics.jsonl", resume_step=0, evaluates_again=True)
    sink.write(1, {"train/loss": 2.5})
    sink.write(2, {"train/loss": float("nan"), "router/encoder.1/load": [0.5, float("inf")]})
    assert rows(tmp_path / "metrics.jsonl") == [
        {"step": 1, "train/loss": 2.5},
        {"step": 2, "train/loss": None, "router/encoder.1/load": [0.5, None]},
    ]


def test_rows_are_on_disk_before_close(tmp_path):
    sink = JsonlSink(tmp_path / "metrics.jsonl", resume_step=0, evaluates_again=True)
    sink.write(1, {"train/loss": 1.0})
    assert len(rows(tmp_path / "metrics.jsonl")) == 1


def test_resume_drops_later_rows_and_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "trai')
    JsonlSink(path, resume_step=2, evaluates_again=False).write(3, {"again": 1.0})
    assert rows(path) == [{"step": 1}, {"step": 2}, {"step": 3, "again": 1.0}]


@pytest.mark.parametrize(("again", "kept"), [(True, ["train/loss"]), (False, ["train/loss", "eval/loss"])])
def test_an_evaluation_that_is_made_again_is_not_logged_twice(tmp_path, again, kept):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "train/loss": 1.0}\n{"step": 2, "eval/loss": 1.0}\n{"step": 3, "train/loss": 1.0}\n')
    JsonlSink(path, resume_step=2, evaluates_again=again).close()
    assert [name for row in rows(path) for name in row if name != "step"] == kept


def test_a_full_disk_is_said_in_words(tmp_path):
    sink = JsonlSink(tmp_path / "metrics.jsonl", resume_step=0, evaluates_again=True)
    sink._file = open("/dev/full", "a")  # noqa: SIM115  # closed by the sink
    with pytest.raises(SetupError, match=r"metrics\.jsonl cannot be written: No space left"):
        sink.write(1, {"train/loss": 1.0})
    sink.close()  # must not hide that error by one of its own


def test_auto_is_offline_without_a_key(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert wandb_mode(compose(["logging.wandb=auto"])) == "offline"
    assert wandb_mode(compose(["logging.wandb=off"])) == "disabled"
    assert wandb_mode(compose(["logging.wandb=online"])) == "online"


def test_auto_with_a_key_but_no_network_is_offline(monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # the discard port: refused at once
    assert wandb_mode(compose(["logging.wandb=auto"])) == "offline"


class _BrokenRun:
    def define_metric(self, *args, **kwargs):
        pass

    def log(self, row):
        raise ConnectionError("gone")

    def finish(self):
        raise ConnectionError("gone")


def test_a_broken_wandb_does_not_stop_the_run(monkeypatch, tmp_path, caplog):
    fake = types.ModuleType("wandb")
    fake.init = lambda **kwargs: _BrokenRun()
    fake.Settings = lambda **kwargs: None
    monkeypatch.setitem(sys.modules, "wandb", fake)
    log = RunLog(RunDir(root=tmp_path), compose(["logging.wandb=offline"]), is_main=True)
    log.write(1, {"train/loss": 1.0})
    log.write(2, {"train/loss": 0.5})
    log.close()
    assert [row["step"] for row in rows(tmp_path / "metrics.jsonl")] == [1, 2]
    assert sum("Weights & Biases is off" in record.message for record in caplog.records) == 1


def test_other_ranks_write_nothing(tmp_path):
    log = RunLog(RunDir(root=tmp_path), compose([]), is_main=False)
    log.write(1, {"train/loss": 1.0})
    log.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_offline_run_keeps_secrets_out(monkeypatch, tmp_path):
    canary = "c4n4ry" * 7
    monkeypatch.setenv("WANDB_API_KEY", canary[:40])
    monkeypatch.setenv("HF_TOKEN", canary)
    log = RunLog(RunDir(root=tmp_path), compose(["logging.wandb=offline"]), is_main=True)
    log.write(1, {"train/loss": 1.0})
    log.close()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert all(b"c4n4ry" not in path.read_bytes() for path in files)
