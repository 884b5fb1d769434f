"""What a task is: windows of text become pairs of inputs and targets. The table of names is `conf.tasks.table`.

Shape suffixes: B windows, L input length, T target length.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from numpy.typing import NDArray

from conf.schema import DataConfig
from conf.tasks.table import TASKS
from data.batch import EOS_ID, IntArray
from data.text.tokenizer import Tokenizer
from data.windows import Windows


class Pairs(NamedTuple):
    """Inputs [B, L] and targets [B, T], each with EOS after its last token and padded with 0."""

    inputs_BL: IntArray
    targets_BT: IntArray


class TokenKind(NamedTuple):
    """Ids that the log tells apart from other targets: from `first` up to `end`."""

    first: int
    end: int | None = None  # None: no end

    def mask(self, ids: Any) -> Any:
        """Where `ids`, an array or a tensor, are of this kind."""
        return ids >= self.first if self.end is None else (ids >= self.first) & (ids < self.end)


class Sample(NamedTuple):
    """A pair without its padding, and what a model made of the inputs."""

    inputs: list[int]
    targets: list[int]
    output: list[int]


def no_kinds(pieces: int) -> dict[str, TokenKind]:
    """`kinds` of a task whose targets are text and nothing else."""
    return {}


def show_answer(tokenizer: Tokenizer, sample: Sample) -> list[str]:
    """`show` of a task whose targets read as text: the inputs, then the true and the generated targets."""
    return [
        f"  ... {clip(tokenizer.decode(sample.inputs))}",
        f"      {tokenizer.decode(sample.targets)!r} -> {tokenizer.decode(sample.output)!r}",
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What `module` of a row of `conf.tasks.table` holds as TASK."""

    # Pairs of windows (of any lengths >= 1; 0: a row of padding), of data.encoder_length and data.decoder_length. A
    # pair is a pure function of its window, its key, which is (epoch, window) [B, 2], the settings and the number of
    # ids of the tokenizer, whose last ones are sentinels.
    make: Callable[[Windows, NDArray[Any], DataConfig, int], Pairs]
    # Kinds of target tokens besides text, by the name under which their loss is logged, given the number of pieces.
    kinds: Callable[[int], dict[str, TokenKind]] = no_kinds
    show: Callable[[Tokenizer, Sample], list[str]] = show_answer  # lines about one held-out pair at the end of a run
    shown: str = "answers to held-out text (true -> generated):"  # the line above them
    command: tuple[str, str, str] = ("generate", "generate", "some input")  # what to try: label, command, its text


def task_of(data: DataConfig) -> Task:
    """The task that `data.task` means."""
    task = importlib.import_module(TASKS[data.task].module).TASK
    assert isinstance(task, Task), f"TASK of {TASKS[data.task].module} is {task!r}"
    return task


def text_kind(pieces: int) -> TokenKind:
    """Text: neither padding nor EOS, whose place is predictable, nor ids beyond the tokenizer's pieces."""
    return TokenKind(EOS_ID + 1, pieces)


def target_kinds(data: DataConfig, pieces: int) -> dict[str, TokenKind]:
    """The kinds of target tokens whose losses are logged: text, and those of the task."""
    return {"text": text_kind(pieces), **task_of(data).kinds(pieces)}


def clip(text: str, width: int = 96) -> str:
    """`text` on one line of at most so many characters."""
    flat = " ".join(text.split())
    return flat if len(flat) <= width else flat[:width] + " ..."
