"""What a task is: windows of text become pairs of inputs and targets. The table of names is `conf.tasks.table`.

Shape suffixes: B windows, L input length, T target length.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

from numpy.typing import NDArray

from conf.schema import DataConfig
from conf.tasks.table import TASKS
from data.batch import EOS_ID, IntArray
from data.text.tokenizer import Tokenizer
from data.text.vocabulary import Vocabulary
from data.windows import Windows

_EXAMPLE = 60  # characters of a text that is typed


class Pairs(NamedTuple):
    """Inputs [B, L] and targets [B, T], each with EOS after its last token and padded with 0."""

    inputs_BL: IntArray
    targets_BT: IntArray


class TokenKind(NamedTuple):
    """Ids that the log tells apart from other targets: from `first` up to `end`, but for some ranges between."""

    first: int
    end: int
    but: tuple[tuple[int, int], ...] = ()  # first and end of each range that is left out

    def mask(self, ids: Any) -> Any:
        """Where `ids`, an array or a tensor, are of this kind."""
        mask = (ids >= self.first) & (ids < self.end)
        for first, end in self.but:
            mask &= (ids < first) | (ids >= end)
        return mask


def kind_of(ids: Iterable[int]) -> TokenKind:
    """The kind that is exactly `ids`."""
    ordered = sorted(ids)
    if not ordered:
        return TokenKind(0, 0)
    gaps = tuple((left + 1, right) for left, right in pairwise(ordered) if right > left + 1)
    return TokenKind(ordered[0], ordered[-1] + 1, gaps)


class Sample(NamedTuple):
    """A pair without its padding, and what a model made of the inputs."""

    inputs: list[int]
    targets: list[int]
    output: list[int]


def no_kinds(vocabulary: Vocabulary) -> dict[str, TokenKind]:
    """`kinds` of a task whose targets are text and nothing else."""
    return {}


def show_answer(tokenizer: Tokenizer, sample: Sample) -> list[str]:
    """`show` of a task whose targets read as text: the inputs, then the true and the generated targets."""
    return [
        f"  ... {clip(tokenizer.decode(sample.inputs))}",
        f"      {tokenizer.decode(sample.targets)!r} -> {tokenizer.decode(sample.output)!r}",
    ]


def first_input(tokenizer: Tokenizer, inputs: Sequence[list[int]]) -> str:
    """`example` of a task whose inputs read as text."""
    return " ".join(tokenizer.decode(inputs[0]).split())[:_EXAMPLE]


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What `module` of a row of `conf.tasks.table` holds as TASK."""

    # Pairs of windows (of any lengths >= 1; 0: a row of padding), of data.encoder_length and data.decoder_length. A
    # pair is a pure function of its window, its key, which is (epoch, window) [B, 2], the settings and which ids of
    # the tokenizer are sentinels.
    make: Callable[[Windows, NDArray[Any], DataConfig, Vocabulary], Pairs]
    # Kinds of target tokens besides text, by the name under which their loss is logged.
    kinds: Callable[[Vocabulary], dict[str, TokenKind]] = no_kinds
    show: Callable[[Tokenizer, Sample], list[str]] = show_answer  # lines about one held-out pair at the end of a run
    shown: str = "answers to held-out text (true -> generated):"  # the line above them
    command: tuple[str, str] = ("generate", "generate")  # what to try at the end of a run: label, command
    example: Callable[[Tokenizer, Sequence[list[int]]], str] = first_input  # its text, made of held-out inputs


def task_of(data: DataConfig) -> Task:
    """The task that `data.task` means."""
    task = importlib.import_module(TASKS[data.task].module).TASK
    assert isinstance(task, Task), f"TASK of {TASKS[data.task].module} is {task!r}"
    return task


@lru_cache(maxsize=4)  # a meter is made every step, and a vocabulary may be large
def text_kind(vocabulary: Vocabulary) -> TokenKind:
    """Text: neither padding nor EOS, whose place is predictable, nor sentinels."""
    return kind_of(set(range(EOS_ID + 1, vocabulary.size)).difference(vocabulary.sentinels))


def target_kinds(data: DataConfig, vocabulary: Vocabulary) -> dict[str, TokenKind]:
    """The kinds of target tokens whose losses are logged: text, and those of the task."""
    return {"text": text_kind(vocabulary), **task_of(data).kinds(vocabulary)}


def clip(text: str, width: int = 96, *, mark: str | None = None) -> str:
    """`text` on one line of at most so many characters, with the first `mark` in the middle if more are left out."""
    flat = " ".join(text.split())
    if len(flat) <= width:
        return flat
    middle = flat.index(mark) + len(mark) // 2 if mark else 0
    first = min(max(middle - width // 2, 0), len(flat) - width)
    return flat[first : first + width] + (" ..." if first + width < len(flat) else "")
