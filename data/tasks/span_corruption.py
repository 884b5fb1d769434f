"""T5 span corruption (arXiv 1910.10683, section 3.1.4) as a pure function of tokens and a key, over a batch.

Follows `random_spans_noise_mask`, `noise_span_to_unique_sentinel` and `nonnoise_span_to_unique_sentinel` of the T5
reference: lengths of noise and non-noise spans are uniform compositions, spans alternate beginning with non-noise, the
k-th noise span becomes <extra_id_k> in the inputs, the k-th non-noise span becomes <extra_id_k> in the targets.

Shape suffixes: B windows, R raw tokens of a window, S spans, L encoder length, T decoder length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from conf.schema import DataConfig
from conf.tasks.span_corruption import corrupted_lengths
from data.batch import EOS_ID, PAD_ID, BoolArray, IntArray
from data.tasks.task import Pairs, Sample, Task, TokenKind, clip
from data.text.tokenizer import Tokenizer


class SpanSettings(NamedTuple):
    """How windows are corrupted and to which lengths the two sides are padded."""

    noise_density: float
    mean_span_length: float
    encoder_length: int
    decoder_length: int
    vocab_size: int  # of the tokenizer, with sentinels: <extra_id_0> is vocab_size - 1
    seed: int


class SpanCounts(NamedTuple):
    """Noise tokens and noise spans of a window."""

    noise: int
    spans: int


def span_counts(raw: int, noise_density: float, mean_span_length: float) -> SpanCounts:
    """How many of `raw` tokens are noise and in how many spans; agrees with `conf.tasks.span_corruption`.

    One token alone cannot be both noise and context: it stays in the inputs, as in the reference.
    """
    if raw == 1:
        return SpanCounts(0, 0)
    lengths = corrupted_lengths(raw, noise_density, mean_span_length)
    noise = (raw + lengths.targets - lengths.inputs) // 2
    return SpanCounts(noise, min(lengths.targets - noise - 1, noise, raw - noise))


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
        inputs = _mark_spans(tokens_BR, mask_BR, settings.vocab_size)
        targets = _mark_spans(tokens_BR, ~mask_BR, settings.vocab_size)
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


def _mark_spans(tokens_BR: IntArray, mask_BR: BoolArray, vocab_size: int) -> IntArray:
    """Each masked span replaced by its sentinel, counting down from `vocab_size - 1`, and EOS appended.

    Every row of `mask_BR` has equally many masked tokens and spans, so the result is rectangular.
    """
    first_BR = mask_BR.copy()
    first_BR[:, 1:] &= ~mask_BR[:, :-1]
    marked_BR = np.where(first_BR, vocab_size - np.cumsum(first_BR, axis=1), tokens_BR)
    kept = marked_BR[~mask_BR | first_BR].reshape(len(tokens_BR), -1)
    return np.concatenate([kept, np.full((len(kept), 1), EOS_ID, dtype=np.int64)], axis=1)


def parse_spans(tokenizer: Tokenizer, generated: Sequence[int], count: int) -> list[list[int]]:
    """Ids after sentinel k up to the next sentinel, for k < count; empty where sentinel k was not generated."""
    spans: list[list[int]] = [[] for _ in range(count)]
    current: int | None = None
    for token in generated:
        if token == EOS_ID:
            break
        index = tokenizer.size - 1 - token
        if 0 <= index < tokenizer.sentinels:
            current = index if index < count and not spans[index] else None
        elif current is not None and token > EOS_ID:
            spans[current].append(token)
    return spans


def _make(windows: Sequence[NDArray[np.integer]], keys: NDArray[np.int64], data: DataConfig, vocab_size: int) -> Pairs:
    settings = SpanSettings(
        noise_density=data.noise_density,
        mean_span_length=data.mean_span_length,
        encoder_length=data.encoder_length,
        decoder_length=data.decoder_length,
        vocab_size=vocab_size,
        seed=data.seed,
    )
    return corrupt(windows, keys, settings)


def _kinds(pieces: int) -> dict[str, TokenKind]:
    """Sentinels come in a fixed order and flatter a total."""
    return {"sentinel": TokenKind(pieces)}


def _show(tokenizer: Tokenizer, sample: Sample) -> list[str]:
    """The first spans, true and filled."""
    wanted = [index for index in range(tokenizer.sentinels) if tokenizer.sentinel_id(index) in sample.inputs][:4]
    true = parse_spans(tokenizer, sample.targets, tokenizer.sentinels)
    ours = parse_spans(tokenizer, sample.output, tokenizer.sentinels)
    pairs = "  ".join(f"{tokenizer.decode(true[k])!r} -> {tokenizer.decode(ours[k])!r}" for k in wanted)
    return [f"  ... {clip(tokenizer.decode(sample.inputs))}", f"      {pairs}"]


TASK = Task(
    make=_make,
    kinds=_kinds,
    show=_show,
    shown="spans filled on held-out text (true -> filled):",
    command=("fill spans", "fill", "import <mask> as np"),
)
