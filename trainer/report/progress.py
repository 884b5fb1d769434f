"""The live progress display of rank 0: step, loss, tokens/s, auxiliary loss, dropped share, time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from typing_extensions import override

from conf.schema import LoggingConfig


class ProgressView(Protocol):
    """What the loop tells a person while it runs."""

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """A training step was logged."""
        ...

    def say(self, text: str) -> None:
        """A message that stays on screen."""
        ...

    def close(self) -> None:
        """Stop drawing."""
        ...


def _line(metrics: Mapping[str, float]) -> str:
    parts = [f"loss {metrics['train/loss']:.3f}"]
    if "train/aux_loss" in metrics:
        parts.append(f"aux {metrics['train/aux_loss']:.4f}")
    if "train/dropped" in metrics:
        parts.append(f"dropped {metrics['train/dropped']:.1%}")
    if "perf/tokens_per_second" in metrics:
        parts.append(f"{metrics['perf/tokens_per_second']:,.0f} tok/s")
    if "perf/mfu" in metrics:
        parts.append(f"MFU {metrics['perf/mfu']:.1%}")
    return "  ".join(parts)


class LiveView(ProgressView):
    """A bar that redraws in place, for terminals."""

    def __init__(self, total_steps: int | None, start_step: int) -> None:
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[line]}"),
            TextColumn("left"),
            TimeRemainingColumn(compact=True),
            console=Console(file=sys.stdout),
            refresh_per_second=4,
        )
        self._task = self._progress.add_task("train", total=total_steps, completed=start_step, line="starting")
        self._progress.start()

    @override
    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        with suppress(OSError):  # a terminal that is gone is no reason to lose steps
            self._progress.update(self._task, completed=step, line=_line(metrics))

    @override
    def say(self, text: str) -> None:
        with suppress(OSError):
            self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @override
    def close(self) -> None:
        with suppress(OSError):
            self._progress.stop()


class PlainView(ProgressView):
    """One line every few seconds, for files and batch jobs."""

    def __init__(self, total_steps: int | None, start_step: int, *, interval_s: float = 5.0) -> None:
        self._total, self._start, self._interval_s = total_steps, start_step, interval_s
        self._began = time.monotonic()
        self._last = float("-inf")

    @override
    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        now = time.monotonic()
        if now - self._last < self._interval_s and step != self._total:
            return
        self._last = now
        self.say(f"step {step}{f'/{self._total}' if self._total else ''}  {_line(metrics)}  {self._left(step, now)}")

    def _left(self, step: int, now: float) -> str:
        if self._total is None or step <= self._start:
            return ""
        seconds = (now - self._began) / (step - self._start) * max(self._total - step, 0)
        return f"left {int(seconds // 60)}:{int(seconds % 60):02d}"

    @override
    def say(self, text: str) -> None:
        with suppress(OSError):  # a reader that is gone (`| tee`, Ctrl-C) is no reason to lose steps
            print(text, flush=True)

    @override
    def close(self) -> None:
        pass


class PreparationView:
    """Progress of what comes before training (tokenizer, shards): one line redrawn, or a line every few seconds."""

    def __init__(self, *, interval_s: float = 5.0) -> None:
        self._interval_s, self._last, self._width = interval_s, float("-inf"), 0

    def update(self, text: str) -> None:
        """Show `text`."""
        if sys.stdout.isatty():
            print(f"\r{text:<{self._width}}", end="", flush=True)
            self._width = len(text)
        elif time.monotonic() - self._last >= self._interval_s:
            self._last = time.monotonic()
            print(text, flush=True)

    def close(self) -> None:
        """End the redrawn line."""
        if self._width:
            print(flush=True)


class SilentView(ProgressView):
    """Ranks other than 0, and `logging.progress=off`."""

    @override
    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        pass

    @override
    def say(self, text: str) -> None:
        pass

    @override
    def close(self) -> None:
        pass


def open_view(cfg: LoggingConfig, *, is_main: bool, total_steps: int | None, start_step: int) -> ProgressView:
    """The view that fits: live on a terminal, plain lines elsewhere."""
    if not is_main or cfg.progress == "off":
        return SilentView()
    live = cfg.progress == "live" or (cfg.progress == "auto" and sys.stdout.isatty())
    return LiveView(total_steps, start_step) if live else PlainView(total_steps, start_step)
