"""metrics.jsonl is complete and survives kills."""

import pytest

from conf.errors import SetupError
from tests.trainer.report.sinks.openings import opening, rows
from trainer.report.sinks.jsonl import JsonlSink


def test_one_object_a_line_with_step_and_flat_names(tmp_path):
    sink = JsonlSink(opening(tmp_path))
    sink.write(1, {"train/loss": 2.5})
    sink.write(2, {"train/loss": float("nan"), "router/encoder.1/load": [0.5, float("inf")]})
    assert rows(tmp_path / "metrics.jsonl") == [
        {"step": 1, "train/loss": 2.5},
        {"step": 2, "train/loss": None, "router/encoder.1/load": [0.5, None]},
    ]


def test_rows_are_on_disk_before_close(tmp_path):
    sink = JsonlSink(opening(tmp_path))
    sink.write(1, {"train/loss": 1.0})
    assert len(rows(tmp_path / "metrics.jsonl")) == 1


def test_resume_drops_later_rows_and_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "trai')
    JsonlSink(opening(tmp_path, resume_step=2, evaluates_again=False)).write(3, {"again": 1.0})
    assert rows(path) == [{"step": 1}, {"step": 2}, {"step": 3, "again": 1.0}]


@pytest.mark.parametrize(("again", "kept"), [(True, ["train/loss"]), (False, ["train/loss", "eval/loss"])])
def test_an_evaluation_that_is_made_again_is_not_logged_twice(tmp_path, again, kept):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "train/loss": 1.0}\n{"step": 2, "eval/loss": 1.0}\n{"step": 3, "train/loss": 1.0}\n')
    JsonlSink(opening(tmp_path, resume_step=2, evaluates_again=again)).close(failed=False)
    assert [name for row in rows(path) for name in row if name != "step"] == kept


def test_a_full_disk_is_said_in_words(tmp_path):
    sink = JsonlSink(opening(tmp_path))
    sink._file = open("/dev/full", "a")  # noqa: SIM115  # closed by the sink
    with pytest.raises(SetupError, match=r"metrics\.jsonl cannot be written: No space left"):
        sink.write(1, {"train/loss": 1.0})
    sink.close(failed=True)  # must not hide that error by one of its own
