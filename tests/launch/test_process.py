"""What a failing process leaves for its launcher, and when."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conf.errors import DataError
from launch.process import CODE_KEY, ERROR_FILE_VARIABLE, TIME_KEY, guarded, noted, world_from_environment


@pytest.fixture
def note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "error.json"
    monkeypatch.setenv(ERROR_FILE_VARIABLE, str(path))
    return path


def test_a_failure_is_noted_before_anything_is_taken_down(note: Path) -> None:
    seen = []

    def work() -> int:
        try:
            with noted():
                raise DataError("no such file")
        finally:
            seen.append(json.loads(note.read_text())["message"])

    assert guarded(work) == 2
    message = json.loads(note.read_text())["message"]
    assert message == seen[0]  # the first note is kept, with its time
    assert message["message"] == "DataError: no such file"
    assert message["extraInfo"][CODE_KEY] == 2
    assert message["extraInfo"][TIME_KEY] > 0
    assert [each.name for each in note.parent.iterdir()] == [note.name]


def test_an_unexpected_error_is_noted_and_raised_on(note: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: 1 // 0)
    assert json.loads(note.read_text())["message"]["extraInfo"][CODE_KEY] == 1


def test_without_a_launcher_there_is_no_note(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(ERROR_FILE_VARIABLE, raising=False)

    def work() -> int:
        raise DataError("no such file\nat all")

    assert guarded(work) == 2
    assert capsys.readouterr().err == "error: no such file\n       at all\n"


def test_a_note_that_cannot_be_written_hides_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(ERROR_FILE_VARIABLE, str(tmp_path / "missing" / "error.json"))
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: 1 // 0)


def test_a_process_started_by_hand_is_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert world_from_environment() == (1, 1)
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert world_from_environment() == (8, 4)
