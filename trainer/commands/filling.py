"""Filling masked spans: text with `<mask>` to input ids, generated ids back to spans, samples for the summary.

Shape suffixes: B texts, L input length.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from conf.errors import ConfigError
from conf.schema import DataConfig
from conf.tasks.span_corruption import span_lengths, spans_of
from data.batch import EOS_ID
from data.tasks.span_corruption import parse_spans
from data.tasks.task import Sample, task_of
from data.text.tokenizer import Tokenizer
from model.contract import Model, generative
from model.generate import GenerateOptions, generate
from parallel.mesh import collectives
from parallel.mesh.consensus import any_rank
from trainer.session import Session

_ROWS_AT_ONCE = 16  # what a row gives does not depend on its companions
_MASK = re.compile(r"<mask>|<extra_id_(\d+)>")


@dataclass(frozen=True, kw_only=True, slots=True)
class Filled:
    """One text with its spans filled."""

    spans: tuple[str, ...]  # one per mask; empty where the model gave none
    text: str


def has_mask(text: str) -> bool:
    """Whether the text marks a span to fill."""
    return _MASK.search(text) is not None


def split_masks(text: str) -> list[str]:
    """The pieces of text around its masks: n masks give n + 1 pieces. Raises `ConfigError` when there is none."""
    pieces = [piece for index, piece in enumerate(_MASK.split(text)) if index % 2 == 0]
    if len(pieces) < 2:
        raise ConfigError("text", got=text, needs="at least one span to fill", hint="'The <mask> sat on the mat'")
    return pieces


def check_fills(data: DataConfig) -> None:
    """Raise `ConfigError` for the settings of a model that was not trained to fill spans."""
    if data.task != "span_corruption":
        raise ConfigError(
            "data.task", got=data.task, needs="span_corruption, for a model that fills spans", hint="pointsman generate"
        )


def untrained_masks(texts: Sequence[str], data: DataConfig) -> str | None:
    """What to tell a person whose texts have more masks than the windows the model was trained on had spans."""
    trained = spans_of(span_lengths(data))
    most = max(len(split_masks(text)) - 1 for text in texts)
    if most <= trained:
        return None
    return (
        f"note: a text has {most} masks, and every window of the training data ({data.encoder_length} tokens) had "
        f"{trained}: expect little of masks from number {trained + 1} on; fill them one at a time"
    )


def encode_masked(tokenizer: Tokenizer, text: str) -> list[int]:
    """Encoder ids: the pieces with sentinels 0, 1, .. between them, and EOS. Raises when there are too many masks."""
    pieces = split_masks(text)
    if len(pieces) - 1 > tokenizer.sentinels:
        raise ConfigError("text", got=f"{len(pieces) - 1} masks", needs=f"at most {tokenizer.sentinels}")
    ids = list(tokenizer.encode(pieces[0]))
    for index, piece in enumerate(pieces[1:]):
        ids += [tokenizer.sentinel_id(index), *tokenizer.encode(piece)]
    return [*ids, EOS_ID]


def fill_texts(module: Model, tokenizer: Tokenizer, texts: Sequence[str], options: GenerateOptions) -> list[Filled]:
    """Fill every mask of every text. Every rank of a parallel model must call this with the same texts."""
    encoded = [encode_masked(tokenizer, text) for text in texts]
    generated = generate_rows(module, tokenizer, encoded, options)
    filled = []
    for text, ids in zip(texts, generated, strict=True):
        pieces = split_masks(text)
        spans = [tokenizer.decode(span) for span in parse_spans(tokenizer, ids, len(pieces) - 1)]
        joined = pieces[0] + "".join(span + piece for span, piece in zip(spans, pieces[1:], strict=True))
        filled.append(Filled(spans=tuple(spans), text=joined))
    return filled


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
