"""The table of tasks: what windows of text become, by `data.task`. One row per task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from conf.errors import ConfigError
from conf.schema import DataConfig, RawDataConfig
from conf.tasks.lengths import Lengths
from conf.tasks.span_corruption import check_spans, span_lengths, spans_needed


def no_rules(data: DataConfig) -> Iterator[ConfigError]:
    """`check` of a task that takes whatever lengths there are."""
    return iter(())


def no_sentinels(data: RawDataConfig) -> int:
    """`sentinels` of a task that takes none."""
    return 0


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskRow:
    """A task. Settings of other tasks are ignored."""

    module: str  # holds TASK, the `data.tasks.task.Task` that makes pairs
    lengths: Callable[[RawDataConfig], Lengths]  # of a full window; `targets` is the default of data.decoder_length
    check: Callable[[DataConfig], Iterator[ConfigError]] = no_rules  # beyond ranges of single fields
    sentinels: Callable[[RawDataConfig], int] = no_sentinels  # that a full window takes


TASKS: dict[str, TaskRow] = {
    "span_corruption": TaskRow(
        module="data.tasks.span_corruption", lengths=span_lengths, check=check_spans, sentinels=spans_needed
    ),
}


def window_lengths(data: RawDataConfig) -> Lengths:
    """Lengths of a full window under the configured task."""
    return TASKS[data.task].lengths(data)


def check_sentinels(data: DataConfig, there: int) -> Iterator[ConfigError]:
    """A tokenizer with `there` sentinels has those that a full window of the task takes."""
    if (needed := TASKS[data.task].sentinels(data)) > there:
        yield ConfigError(
            "data.sentinels",
            got=there,
            needs=f"one for each of the {needed} spans of a window",
            hint=f"data.sentinels={needed}, or a larger data.mean_span_length",
        )
