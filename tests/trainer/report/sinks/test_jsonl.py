"""metrics.jsonl is complete and survives kills."""

import os

import pytest

from conf.errors import DataError, SetupError
from tests.trainer.report.sinks.openings import opening, rows
from trainer.report.sinks.jsonl import JsonlSink, read_rows


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
    sink._file = open("/dev/full", "ab")  # noqa: SIM115  # closed by the sink
    with pytest.raises(SetupError, match=r"metrics\.jsonl cannot be written: No space left"):
        sink.write(1, {"train/loss": 1.0})
    sink.close(failed=True)  # must not hide that error by one of its own


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b'{"step": 1}\n{"step": 2, "x": "\xff"}\n{"step": 3}\n', "line 2, byte 30: 0xff is no UTF-8"),
        (b'{"step": 1}\n{"step"; 2}\n', "line 2, byte 19: no JSON"),
        (b'{"step": 1}\n[2]\n', "line 2, byte 12: no row with a step"),
        (b'{"stop": 1}\n', "line 1, byte 0: no row with a step"),
        (b'{"step": 1}{"step": 2}\n', "line 1, byte 11: no JSON"),
        (b'{"step": 1' + b"0" * 5000 + b"}\n", "line 1, byte 0: no JSON"),
        (b"[" * 100_000 + b"\n", "line 1, byte 0: no JSON"),
    ],
)
def test_a_damaged_line_is_named_and_nothing_is_lost(tmp_path, content, named):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"metrics\.jsonl: {named}.*restore it, or delete that line"):
        JsonlSink(opening(tmp_path, resume_step=9))
    with pytest.raises(DataError, match=named):
        read_rows(path)
    assert path.read_bytes() == content


def test_nothing_is_written_through_a_link(tmp_path):
    elsewhere, path = tmp_path / "elsewhere", tmp_path / "metrics.jsonl"
    elsewhere.write_text('{"step": 1}\n')
    path.symlink_to(elsewhere)
    sink = JsonlSink(opening(tmp_path, resume_step=1, evaluates_again=False))
    sink.write(2, {})
    assert rows(path) == [{"step": 1}, {"step": 2}]
    assert elsewhere.read_text() == '{"step": 1}\n'
    path.unlink()
    path.symlink_to(tmp_path / "absent")
    with pytest.raises(SetupError, match="is a symbolic link"):
        JsonlSink(opening(tmp_path))
    assert not (tmp_path / "absent").exists()
    path.unlink()
    os.mkfifo(path)
    with pytest.raises((SetupError, DataError)):
        JsonlSink(opening(tmp_path))
