"""Metrics to `metrics.jsonl`, which is always complete: one JSON object a line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from conf.errors import DataError, SetupError
from conf.safety.regular import read_regular
from conf.safety.writing import append_to, write_whole
from trainer.report.sinks.sink import Opening, Value


class JsonlSink:
    """One JSON object a line, flushed at once; after a resume, rows that will be written again are dropped."""

    def __init__(self, opening: Opening) -> None:
        """Rows beyond `resume_step` go; of that step itself all but the training row if it is evaluated again."""
        self._path = opening.run.metrics
        _drop_rows(self._path, opening.resume_step, evaluates_again=opening.evaluates_again)
        try:
            self._file = append_to(self._path)
        except OSError as error:
            raise SetupError(f"{self._path}: {error.strerror or error}; needs a plain file") from error

    def write(self, step: int, metrics: Mapping[str, Value]) -> None:
        """Record one row; a number that is not finite becomes null, since JSON knows none. SetupError: disk full."""
        row = {"step": step, **{name: _json_value(value) for name, value in metrics.items()}}
        try:
            self._file.write(json.dumps(row).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise SetupError(
                f"{self._path} cannot be written: {error.strerror or error}; needs room on the disk: the run continues "
                "from its last checkpoint once there is some"
            ) from error

    def close(self, *, failed: bool) -> None:
        """Close the file. Rows are flushed as they are written, and a failure of that was raised then."""
        with suppress(OSError):
            self._file.close()

    def where(self) -> list[str]:
        """See `Sink`."""
        return [f"  metrics            {self._path}"]


def _json_value(value: Value) -> Any:
    if isinstance(value, list):
        return [_json_value(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Every row. A last line that was cut off is no row.

    Raises DataError for a file that cannot be read, with line and byte where a whole line is no row.
    """
    return [row for _, row in _lines(path)]


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    try:
        content = read_regular(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); restore it, or move away what is there") from error
    start = 0
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        yield line, _row(path, number, start, line)
        start += len(line) + 1


def _row(path: Path, number: int, start: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode())
        if isinstance(row, dict) and type(row.get("step")) is int:
            return row
        at, wrong = 0, "no row with a step"
    except UnicodeDecodeError as error:
        at, wrong = error.start, f"0x{line[error.start]:02x} is no UTF-8"
    except json.JSONDecodeError as error:
        at, wrong = len(error.doc[: error.pos].encode()), f"no JSON ({error.msg})"
    except (ValueError, RecursionError) as error:
        at, wrong = 0, f"no JSON ({error})"
    raise DataError(
        f"{path}: line {number}, byte {start + at}: {wrong}; the file was changed after it was written: restore it, or "
        "delete that line, from which nothing is computed"
    )


def _drop_rows(path: Path, step: int, *, evaluates_again: bool) -> None:
    """Drop what will be logged again, and a half-written last line; whole or not at all, should we be killed here."""
    if path.exists():
        kept = [line for line, row in _lines(path) if _stays(row, step, evaluates_again)]
        write_whole(path, b"".join(line + b"\n" for line in kept))


def _stays(row: dict[str, Any], step: int, evaluates_again: bool) -> bool:
    return row["step"] < step or (row["step"] == step and ("train/loss" in row or not evaluates_again))
