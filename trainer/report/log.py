"""Metrics to `metrics.jsonl` (always complete) and to Weights & Biases (best effort, never in the way). Rank 0 only."""

from __future__ import annotations

import json
import logging
import math
import netrc
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlparse

from conf import compose
from conf.errors import SetupError
from conf.reading.redact import redact
from conf.schema import RunConfig
from trainer.report.heatmap import heatmap_image
from trainer.report.metrics import Report
from trainer.run_dir import RunDir

logger = logging.getLogger(__name__)

Value = float | int | str | list[float]
_PER_EXPERT_NUMBERS = 64  # more experts than this go to W&B as a heat map alone


class Sink(Protocol):
    """Somewhere metrics go."""

    def write(self, step: int, metrics: Mapping[str, Value]) -> None:
        """Record one row."""
        ...

    def close(self) -> None:
        """Flush."""
        ...


class JsonlSink:
    """One JSON object a line, flushed at once; after a resume, rows that will be written again are dropped."""

    def __init__(self, path: Path, *, resume_step: int, evaluates_again: bool) -> None:
        """Rows beyond `resume_step` go; of that step itself all but the training row if it is evaluated again."""
        _drop_rows(path, resume_step, evaluates_again=evaluates_again)
        self._path = path
        self._file = path.open("a", encoding="utf-8")

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

    def close(self) -> None:
        """Close the file. Rows are flushed as they are written, and a failure of that was raised then."""
        with suppress(OSError):
            self._file.close()


def _json_value(value: Value) -> Any:
    if isinstance(value, list):
        return [_json_value(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _drop_rows(path: Path, step: int, *, evaluates_again: bool) -> None:
    """Drop what will be logged again, and a half-written last line; whole or not at all, should we be killed here."""
    if not path.exists():
        return
    kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _stays(line, step, evaluates_again)]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    temporary.replace(path)


def _stays(line: str, step: int, evaluates_again: bool) -> bool:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return False
    return row["step"] < step or (row["step"] == step and ("train/loss" in row or not evaluates_again))


def wandb_mode(cfg: RunConfig) -> Literal["online", "offline", "disabled"]:
    """`auto` is online with a key and a reachable server, else offline; offline runs are uploaded by `wandb sync`."""
    choice = cfg.logging.wandb
    if choice == "off" or os.environ.get("WANDB_MODE") == "disabled":
        return "disabled"
    if choice != "auto":
        return choice
    return "online" if _has_key() and _reachable() else "offline"


def _server() -> tuple[str, int]:
    url = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    return url.hostname or "api.wandb.ai", url.port or (80 if url.scheme == "http" else 443)


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators(_server()[0]) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _reachable(timeout_s: float = 3.0) -> bool:
    try:
        with socket.create_connection(_server(), timeout=timeout_s):
            return True
    except OSError:
        return False


class WandbSink:
    """Weights & Biases. Any failure is reported once and ends this sink, not the run."""

    def __init__(self, run: RunDir, cfg: RunConfig, *, mode: Literal["online", "offline"]) -> None:
        self._run: Any = None
        try:
            import wandb

            self._run = wandb.init(
                project=cfg.logging.wandb_project,
                entity=cfg.logging.wandb_entity,
                name=run.root.name,
                id=run.root.name,
                resume="allow" if mode == "online" else None,
                dir=str(run.root),
                config=redact(compose.to_dict(cfg)),
                mode=mode,
                settings=wandb.Settings(silent=True, init_timeout=30, console="off", disable_git=True),
            )
            # Steps are ours: a resumed run starts below the last one logged, which W&B's own counter refuses.
            self._run.define_metric("step")
            self._run.define_metric("*", step_metric="step")
        except Exception as error:
            self._fail(error)

    @property
    def alive(self) -> bool:
        """Whether rows still reach W&B."""
        return self._run is not None

    def write(self, step: int, metrics: Mapping[str, Value]) -> None:
        """Record one row; lists become one number per expert while there are few."""
        if self._run is None:
            return
        row: dict[str, Any] = {"step": step}
        for name, value in metrics.items():
            if not isinstance(value, list):
                row[name] = value
            elif len(value) <= _PER_EXPERT_NUMBERS:
                row |= {f"{name}/{index:02d}": item for index, item in enumerate(value)}
        self._log(row)

    def write_heatmap(self, step: int, report: Report) -> None:
        """Experts x layers, coloured by load relative to an even share."""
        if self._run is None or not report.layers:
            return
        try:
            import wandb

            image = wandb.Image(heatmap_image(report.layers), caption=f"expert load by layer, step {step}")
        except Exception as error:
            self._fail(error)
            return
        self._log({"step": step, "router/heatmap": image})

    def close(self) -> None:
        """Finish the W&B run."""
        if self._run is None:
            return
        try:
            self._run.finish()
        except Exception as error:
            self._fail(error)

    def _log(self, row: dict[str, Any]) -> None:
        try:
            self._run.log(row)
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._run = None
        logger.warning(
            "Weights & Biases is off for the rest of this run (%s: %s); metrics.jsonl stays complete",
            type(error).__name__,
            error,
        )


class RunLog:
    """Everything a run records. On ranks other than 0 it records nothing."""

    def __init__(
        self, run: RunDir, cfg: RunConfig, *, is_main: bool, resume_step: int = 0, evaluates_again: bool = True
    ) -> None:
        """Raises OSError when `metrics.jsonl` cannot be opened."""
        self.wandb: WandbSink | None = None
        self._sinks: list[Sink] = []
        self.mode: str = "disabled"
        if not is_main:
            return
        self._sinks.append(JsonlSink(run.metrics, resume_step=resume_step, evaluates_again=evaluates_again))
        self.mode = mode = wandb_mode(cfg)
        if mode != "disabled":
            self.wandb = WandbSink(run, cfg, mode=mode)
            self._sinks.append(self.wandb)

    def write(self, step: int, metrics: Mapping[str, Value]) -> None:
        """Record one row everywhere."""
        for sink in self._sinks:
            sink.write(step, metrics)

    def heatmap(self, step: int, report: Report) -> None:
        """Record the expert heat map where images can be kept."""
        if self.wandb is not None:
            self.wandb.write_heatmap(step, report)

    def close(self) -> None:
        """Close every sink."""
        for sink in self._sinks:
            sink.close()
