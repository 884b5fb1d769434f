"""Metrics to `metrics.jsonl`, which is always complete: one JSON object a line."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from conf.errors import SetupError
from conf.safety.regular import read_regular
from trainer.report.sinks.sink import Opening, Value


class JsonlSink:
    """One JSON object a line, flushed at once; after a resume, rows that will be written again are dropped."""

    def __init__(self, opening: Opening) -> None:
        """Rows beyond `resume_step` go; of that step itself all but the training row if it is evaluated again."""
        self._path = opening.run.metrics
        _drop_rows(self._path, opening.resume_step, evaluates_again=opening.evaluates_again)
        self._file = self._path.open("a", encoding="utf-8")

    def write(self, step: int, metrics: Mapping[str, Value]) -> None:
        """Record one row; a number that is not finite becomes null, since JSON knows none. SetupError: disk full."""
        row = {"step": step, **{name: _json_value(value) for name, value in metrics.items()}}
        try:
            self._file.write(json.dumps(row) + "\n")
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


def _drop_rows(path: Path, step: int, *, evaluates_again: bool) -> None:
    """Drop what will be logged again, and a half-written last line; whole or not at all, should we be killed here."""
    if not path.exists():
        return
    kept = [line for line in read_regular(path).decode("utf-8").splitlines() if _stays(line, step, evaluates_again)]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    temporary.replace(path)


def _stays(line: str, step: int, evaluates_again: bool) -> bool:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return False
    return row["step"] < step or (row["step"] == step and ("train/loss" in row or not evaluates_again))
