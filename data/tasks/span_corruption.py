"""T5's span corruption (arXiv 1910.10683, section 3.1.4) as a pure function of tokens and a key, over a batch.

Follows `random_spans_noise_mask`, `noise_span_to_unique_sentinel` and `nonnoise_span_to_unique_sentinel` of the T5
reference: lengths of noise and non-noise spans are uniform compositions, spans alternate beginning with non-noise, the
k-th noise span becomes <extra_id_k> in the inputs, the k-th non-noise span becomes <extra_id_k> in the targets.

Shape suffixes: B windows, R raw tokens of a window, S spans, L encoder length, T decoder length.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from conf.schema import DataConfig
from conf.tasks.span_corruption import span_counts
from data.batch import EOS_ID, PAD_ID, BoolArray, IntArray
from data.tasks.task import Pairs, Sample, Task, TokenKind, clip, kind_of
from data.text.tokenizer import Tokenizer
from data.text.vocabulary import Vocabulary

_SHOWN = 4  # spans of a window, at the end of a run
_SIDE = 30  # characters beside the mask of an example
_NEXT_MASK = re.compile("<extra_id_")


class SpanSettings(NamedTuple):
    """How windows are corrupted and to which lengths the two sides are padded."""

    noise_density: float
    mean_span_length: float
    encoder_length: int
    decoder_length: int
    sentinels: Sequence[int]  # id of <extra_id_k> at k
    seed: int


def corrupt(windows: Sequence[NDArray[np.integer]], keys: NDArray[np.int64], settings: SpanSettings) -> Pairs:
    """Corrupt windows of any lengths >= 1 (0: a row of padding); `keys` [B, 2] is (epoch, window) of each.

    The result for a window depends on its tokens, its key and the settings, never on its neighbours.
    """
    assert len(windows) == len(keys), (len(windows), len(keys))
    inputs_BL = np.full((len(windows), settings.encoder_length), PAD_ID, dtype=np.int64)
    targets_BT = np.full((len(windows), settings.decoder_length), PAD_ID, dtype=np.int64)
    lengths = np.array([len(window) for window in windows], dtype=np.int64)
    for raw in np.unique(lengths):
        rows = np.flatnonzero(lengths == raw)
        if raw == 0:
            continue
        tokens_BR = np.stack([windows[row] for row in rows.tolist()]).astype(np.int64)
        mask_BR = noise_mask(int(raw), keys[rows], settings)
        inputs = _mark_spans(tokens_BR, mask_BR, settings.sentinels)
        targets = _mark_spans(tokens_BR, ~mask_BR, settings.sentinels)
        inputs_BL[rows, : inputs.shape[1]] = inputs
        targets_BT[rows, : targets.shape[1]] = targets
    return Pairs(inputs_BL, targets_BT)


def noise_mask(raw: int, keys: NDArray[np.int64], settings: SpanSettings) -> BoolArray:
    """Which tokens are noise, [B, raw]: begins with a non-noise span and ends with a noise span."""
    noise, spans = span_counts(raw, settings.noise_density, settings.mean_span_length)
    if noise == 0:
        return np.zeros((len(keys), raw), dtype=bool)
    kept = raw - noise
    draws = np.stack([_draws(settings.seed, int(epoch), int(index), raw - 2) for epoch, index in keys])
    kept_BS = _segment_lengths(kept, spans, draws[:, : kept - 1])
    noise_BS = _segment_lengths(noise, spans, draws[:, kept - 1 :])
    starts = np.cumsum(np.stack([kept_BS, noise_BS], axis=2).reshape(len(keys), 2 * spans), axis=1)[:, :-1]
    is_start_BR = np.zeros((len(keys), raw), dtype=np.int64)
    np.put_along_axis(is_start_BR, starts, 1, axis=1)
    return np.cumsum(is_start_BR, axis=1) % 2 == 1


def _draws(seed: int, epoch: int, index: int, count: int) -> NDArray[np.uint64]:
    """Raw words of Philox4x64 keyed by (seed, epoch) and started at a block of `index`; stable over numpy versions."""
    words = np.array([0, 0, index, 1], dtype=np.int64).astype(np.uint64)
    key = np.array([seed, epoch], dtype=np.int64).astype(np.uint64)
    return np.random.Philox(counter=words, key=key).random_raw(count)


def _segment_lengths(items: int, segments: int, draws: NDArray[np.uint64]) -> IntArray:
    """Uniformly random compositions of `items` into `segments` positive parts [B, segments], from `items - 1` words.

    The places of the `segments - 1` smallest words are a uniform choice of cuts among the gaps between items.
    """
    cuts = np.sort(np.argsort(draws, axis=1, kind="stable")[:, : segments - 1], axis=1) + 1
    ends = np.full((len(draws), 1), items, dtype=np.int64)
    return np.diff(np.concatenate([cuts, ends], axis=1), axis=1, prepend=0)


def _mark_spans(tokens_BR: IntArray, mask_BR: BoolArray, sentinels: Sequence[int]) -> IntArray:
    """Each masked span replaced by its sentinel, and EOS appended.

    Every row of `mask_BR` has equally many masked tokens and spans, so the result is rectangular.
    """
    first_BR = mask_BR.copy()
    first_BR[:, 1:] &= ~mask_BR[:, :-1]
    number_BR = np.maximum(np.cumsum(first_BR, axis=1) - 1, 0)
    marked_BR = np.where(first_BR, np.asarray(sentinels, dtype=np.int64)[number_BR], tokens_BR)
    kept = marked_BR[~mask_BR | first_BR].reshape(len(tokens_BR), -1)
    return np.concatenate([kept, np.full((len(kept), 1), EOS_ID, dtype=np.int64)], axis=1)


def parse_spans(tokenizer: Tokenizer, generated: Sequence[int], count: int) -> list[list[int]]:
    """Ids after sentinel k up to the next sentinel, for k < count; empty where sentinel k was not generated."""
    spans: list[list[int]] = [[] for _ in range(count)]
    current: int | None = None
    for token in generated:
        if token == EOS_ID:
            break
        number = tokenizer.sentinel_number(token)
        if number is not None:
            current = number if number < count and not spans[number] else None
        elif current is not None and token > EOS_ID:
            spans[current].append(token)
    return spans


def _make(
    windows: Sequence[NDArray[np.integer]], keys: NDArray[np.int64], data: DataConfig, vocabulary: Vocabulary
) -> Pairs:
    settings = SpanSettings(
        noise_density=data.noise_density,
        mean_span_length=data.mean_span_length,
        encoder_length=data.encoder_length,
        decoder_length=data.decoder_length,
        sentinels=vocabulary.sentinels,
        seed=data.seed,
    )
    return corrupt(windows, keys, settings)


def _kinds(vocabulary: Vocabulary) -> dict[str, TokenKind]:
    """Sentinels come in a fixed order and flatter a total."""
    return {"sentinel": kind_of(vocabulary.sentinels)}


def _show(tokenizer: Tokenizer, sample: Sample) -> list[str]:
    """The first spans, true and filled; each with its surroundings where the window is too long for one line."""
    wanted = [number for number in map(tokenizer.sentinel_number, sample.inputs) if number is not None][:_SHOWN]
    true = parse_spans(tokenizer, sample.targets, tokenizer.sentinels)
    ours = parse_spans(tokenizer, sample.output, tokenizer.sentinels)
    pairs = [f"{_text(tokenizer, true[k])!r} -> {_text(tokenizer, ours[k])!r}" for k in wanted]
    text = tokenizer.decode(sample.inputs)
    contexts = [clip(text, mark=f"<extra_id_{k}>") for k in wanted]
    if len(set(contexts)) == 1:
        pairs, contexts = ["  ".join(pairs)], contexts[:1]
    return [
        line for context, pair in zip(contexts, pairs, strict=True) for line in (f"  ... {context}", f"      {pair}")
    ]


def _text(tokenizer: Tokenizer, span: Sequence[int]) -> str:
    return tokenizer.decode(span, inside=True)


def _example(tokenizer: Tokenizer, inputs: Sequence[list[int]]) -> str:
    """The line of a held-out text that its first mask is in, so that it can be typed; else some text around a mask."""
    beside = []
    for ids in inputs:
        before, _, after = tokenizer.decode(ids).partition("<extra_id_0>")
        beside.append((before, _NEXT_MASK.split(after)[0]))
    lines = [(left.rpartition("\n")[2].lstrip(), right.partition("\n")[0].rstrip()) for left, right in beside]
    for left, right in lines:
        text = left + right
        if len(text) >= _SIDE and text.isprintable() and not tokenizer.unknown_characters(text):
            break
    else:
        left, right = beside[0]
    return " ".join(f"{_last_words(left)}<mask>{_last_words(right[::-1])[::-1]}".split())


def _last_words(text: str) -> str:
    """The end of `text`, from a word on."""
    return text if len(text) <= _SIDE else text[-_SIDE:].partition(" ")[2]


TASK = Task(
    make=_make,
    kinds=_kinds,
    show=_show,
    shown="spans filled on held-out text (true -> filled):",
    command=("fill spans", "fill"),
    example=_example,
)
