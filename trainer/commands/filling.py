"""Filling masked spans: text with `<mask>` to input ids, generated ids back to spans, samples for the summary.

Shape suffixes: B texts, L input length.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from conf.errors import ConfigError
from conf.schema import DataConfig
from conf.tasks.span_corruption import spans_needed
from data.batch import EOS_ID
from data.tasks.span_corruption import parse_spans
from data.tasks.task import Sample, task_of
from data.text.spiece import SENTINEL
from data.text.tokenizer import Tokenizer
from model.contract import Model, generative
from model.generate import GenerateOptions, generate
from parallel.mesh import collectives
from parallel.mesh.consensus import any_rank
from trainer.session import Session

_ROWS_AT_ONCE = 16  # what a row gives does not depend on its companions
_MASK = re.compile(rf"<mask>|{SENTINEL.pattern}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Filled:
    """One text with its spans filled."""

    spans: tuple[str, ...]  # one per mask, as they stand in the text; empty where the model gave none
    text: str


class Masked(NamedTuple):
    """A text around its masks: n masks are between n + 1 parts."""

    parts: list[str]
    numbers: list[int]  # of the sentinel that stands for each mask

    @property
    def text(self) -> str:
        """The text with <extra_id_N> for each mask."""
        masks = [*(f"<extra_id_{number}>" for number in self.numbers), ""]
        return "".join(part + mask for part, mask in zip(self.parts, masks, strict=True))


def find_masks(text: str) -> Masked:
    """The masks of a text. <extra_id_N> keeps its number; each <mask> has the lowest one that is not taken."""
    pieces = _MASK.split(text)  # parts, and between them the number of a sentinel, or None for <mask>
    typed = [None if number is None else int(number) for number in pieces[1::2]]
    free = (number for number in itertools.count() if number not in typed)
    return Masked(pieces[::2], [next(free) if number is None else number for number in typed])


def split_masks(text: str) -> Masked:
    """The masks of a text. Raises `ConfigError` when there is none."""
    masked = find_masks(text)
    if not masked.numbers:
        raise ConfigError("text", got=text, needs="at least one span to fill", hint="'The <mask> sat on the mat'")
    return masked


def check_fills(data: DataConfig) -> None:
    """Raise `ConfigError` for the settings of a model that was not trained to fill spans."""
    if data.task != "span_corruption":
        raise ConfigError(
            "data.task", got=data.task, needs="span_corruption, for a model that fills spans", hint="pointsman generate"
        )


def untrained_masks(texts: Sequence[str], data: DataConfig) -> str | None:
    """What to tell a person whose texts have more masks than the windows the model was trained on had spans."""
    trained = spans_needed(data)
    highest = max(max(split_masks(text).numbers) for text in texts)
    if highest < trained:
        return None
    return (
        f"note: a text has the mask <extra_id_{highest}>, and every window of the training data ({data.encoder_length} "
        f"tokens) had {trained} (from <extra_id_0> on): expect little of others; fill masks one at a time"
    )


def encode_masked(tokenizer: Tokenizer, text: str) -> list[int]:
    """Encoder ids of a text, with the sentinels of its masks if it has any, and EOS.

    Raises `ConfigError` for more masks, or a higher number, than there are sentinels.
    """
    masked = find_masks(text)
    if masked.numbers and max(masked.numbers) >= tokenizer.sentinels:
        raise ConfigError(
            "text",
            got=f"{len(masked.numbers)} masks, up to <extra_id_{max(masked.numbers)}>",
            needs=f"at most {tokenizer.sentinels}, from <extra_id_0> on",
        )
    return [*tokenizer.encode_with_sentinels(masked.text).tolist(), EOS_ID]


def fill_texts(module: Model, tokenizer: Tokenizer, texts: Sequence[str], options: GenerateOptions) -> list[Filled]:
    """Fill every mask of every text. Every rank of a parallel model must call this with the same texts."""
    encoded = [encode_masked(tokenizer, text) for text in texts]
    generated = generate_rows(module, tokenizer, encoded, options)
    return [filled(tokenizer, split_masks(text), ids) for text, ids in zip(texts, generated, strict=True)]


def filled(tokenizer: Tokenizer, masked: Masked, generated: Sequence[int]) -> Filled:
    """The text with what was generated for its masks."""
    found = parse_spans(tokenizer, generated, max(masked.numbers) + 1)
    text, spans = masked.parts[0], []
    for number, part in zip(masked.numbers, masked.parts[1:], strict=True):
        span = tokenizer.decode(found[number], inside=True)
        # The blank before a word is the word's, where blanks at the ends of a text are lost, and the first word has one
        # that nobody typed: what stands there already is not put there twice.
        if (tokenizer.adds_blank and not text) or (tokenizer.drops_blanks and text[-1:].isspace()):
            span = span.removeprefix(" ")
        spans.append(span)
        text += span + part
    return Filled(spans=tuple(spans), text=text)


def generate_rows(
    module: Model,
    tokenizer: Tokenizer,
    rows: Sequence[Sequence[int]],
    options: GenerateOptions,
    *,
    all_finished: Callable[[bool], bool] = bool,
) -> list[list[int]]:
    """Generated ids for each row of input ids, a few rows at a time: a file may hold any number of lines.

    Only ids of the tokenizer: the model may have more. `all_finished` as in `model.generate.generate`. Raises
    ConfigError for a model that cannot generate.
    """
    model = generative(module)
    options = replace(options, known_ids=tokenizer.size)
    device = next(module.parameters()).device
    generated: list[list[int]] = []
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        tokens_BL = pad_ids(rows[start : start + _ROWS_AT_ONCE], device)
        generated += generate(model, tokens_BL, options=options, all_finished=all_finished).tokens_BT.tolist()
    return generated


def pad_ids(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Rows of ids as one [B, L] tensor, padded with 0 on the right."""
    tokens = torch.zeros(len(rows), max(len(row) for row in rows), dtype=torch.int64)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return tokens.to(device)


def held_out_example(session: Session) -> str:
    """A text of the run's own kind to try the task's command on; of this rank's first held-out windows."""
    micro = next(iter(session.validation_batches())).micro[0]
    real = micro.inputs_BL.any(axis=1)
    return task_of(session.cfg.data).example(session.corpus.tokenizer, micro.inputs_BL[real].tolist())


def sample_lines(session: Session) -> list[str]:
    """A few held-out windows with what the model makes of them and what is true (collective)."""
    count = session.cfg.train.fill_samples
    if count == 0:
        return []
    tokenizer = session.corpus.tokenizer
    micro = next(iter(session.validation_batches())).micro[0]
    real = micro.inputs_BL.any(axis=1)  # a small held-out part ends in rows of padding
    mine = (micro.inputs_BL[real][:count].tolist(), micro.targets_BT[real][:count].tolist())
    inputs, targets = collectives.broadcast_object(mine, session.mesh.control)
    options = GenerateOptions(max_length=session.cfg.data.decoder_length)

    def all_finished(done: bool) -> bool:
        # Equal prompts, yet sums in another order may part ranks at a near tie, and they share experts.
        return not any_rank(not done, session.mesh)

    generated = generate_rows(session.module, tokenizer, inputs, options, all_finished=all_finished)
    task = task_of(session.cfg.data)
    lines = [task.shown]
    for pair in map(Sample, inputs, targets, generated):
        lines += task.show(tokenizer, pair)
    return lines
