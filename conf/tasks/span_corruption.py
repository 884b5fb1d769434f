"""Lengths and rules of T5's span corruption (arXiv 1910.10683, section 3.1.4)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from conf.errors import ConfigError
from conf.schema import DataConfig, RawDataConfig
from conf.tasks.lengths import Lengths


class SpanCounts(NamedTuple):
    """Noise tokens and noise spans of a window."""

    noise: int
    spans: int


def span_counts(raw: int, noise_density: float, mean_span_length: float) -> SpanCounts:
    """How many of `raw` tokens are noise and in how many spans: rounded, halves to even, and at least one each.

    T5's `random_spans_noise_mask`, but rounded in double precision, and with no more spans than there are tokens to be
    between them, where T5's fails. One token alone cannot be both noise and context: it stays in the inputs.
    """
    if raw == 1:
        return SpanCounts(0, 0)
    noise, spans = _unbounded(raw, noise_density, mean_span_length)
    return SpanCounts(noise, min(spans, raw - noise))


def _unbounded(raw: int, noise_density: float, mean_span_length: float) -> SpanCounts:
    noise = min(max(round(raw * noise_density), 1), raw - 1)
    return SpanCounts(noise, max(round(noise / mean_span_length), 1))


def corrupted_lengths(raw: int, noise_density: float, mean_span_length: float) -> Lengths:
    """Lengths after corrupting `raw` tokens: one sentinel per span on each side, one EOS each (T5, section 3.1.4).

    Where text cannot lie between the spans they are too long; `check_spans` refuses such windows.
    """
    noise, spans = _unbounded(raw, noise_density, mean_span_length)
    return Lengths(raw, raw - noise + spans + 1, noise + spans + 1)


def span_lengths(data: RawDataConfig) -> Lengths:
    """The largest window of text whose corrupted form fits `encoder_length` (T5: 512 takes 568 tokens, targets 114).

    T5's `random_spans_helper`: at a density of 0.5 targets that are longer than the inputs are one token shorter.
    """
    density, mean = data.noise_density, data.mean_span_length
    raw = 2
    while corrupted_lengths(raw + 1, density, mean).inputs <= data.encoder_length:
        raw += 1
    lengths = corrupted_lengths(raw, density, mean)
    if density == 0.5 and lengths.targets > lengths.inputs:
        return corrupted_lengths(raw - 1, density, mean)._replace(targets=lengths.targets - 1)
    return lengths


def spans_needed(data: RawDataConfig) -> int:
    """Corrupted spans of a full window: each puts one sentinel on either side."""
    return span_counts(span_lengths(data).raw, data.noise_density, data.mean_span_length).spans


def check_spans(data: DataConfig) -> Iterator[ConfigError]:
    """The spans of a full window have the wanted length, with text between them."""
    lengths = span_lengths(data)
    noise, spans = _unbounded(lengths.raw, data.noise_density, data.mean_span_length)
    if lengths.inputs > data.encoder_length or lengths.raw - noise < spans:
        yield ConfigError(
            "data.mean_span_length",
            got=data.mean_span_length,
            needs=f"spans ({spans}) with text between them ({lengths.raw - noise} tokens are kept)",
            hint="data.mean_span_length=3 data.noise_density=0.15",
        )
