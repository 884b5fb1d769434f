"""Lengths and rules of T5's span corruption (arXiv 1910.10683, section 3.1.4)."""

from __future__ import annotations

from collections.abc import Iterator

from conf.errors import ConfigError
from conf.schema import DataConfig, RawDataConfig
from conf.tasks.lengths import Lengths


def corrupted_lengths(raw: int, noise_density: float, mean_span_length: float) -> Lengths:
    """Lengths after corrupting `raw` tokens: one sentinel per span on each side, one EOS each (T5, section 3.1.4)."""
    noise = min(max(round(raw * noise_density), 1), raw - 1)
    spans = max(round(noise / mean_span_length), 1)
    return Lengths(raw, raw - noise + spans + 1, noise + spans + 1)


def span_lengths(data: RawDataConfig) -> Lengths:
    """The largest window of text whose corrupted form fits `encoder_length` (T5: 512 takes 568 tokens, targets 114)."""
    raw = 2
    while corrupted_lengths(raw + 1, data.noise_density, data.mean_span_length).inputs <= data.encoder_length:
        raw += 1
    return corrupted_lengths(raw, data.noise_density, data.mean_span_length)


def spans_of(lengths: Lengths) -> int:
    """Corrupted spans of a window: each puts one sentinel on either side."""
    return (lengths.inputs + lengths.targets - lengths.raw - 2) // 2


def check_spans(data: DataConfig) -> Iterator[ConfigError]:
    """Spans of a full window fit the sentinels and between the text that is kept."""
    lengths = span_lengths(data)
    spans = spans_of(lengths)
    noise = lengths.targets - spans - 1
    if lengths.inputs > data.encoder_length or lengths.raw - noise < spans:
        yield ConfigError(
            "data.mean_span_length",
            got=data.mean_span_length,
            needs=f"spans ({spans}) with text between them ({lengths.raw - noise} tokens are kept)",
            hint="data.mean_span_length=3 data.noise_density=0.15",
        )
    if spans > data.sentinels:
        yield ConfigError(
            "data.sentinels",
            got=data.sentinels,
            needs=f"one for each of the {spans} spans of a window",
            hint=f"data.sentinels={spans}, or a larger data.mean_span_length",
        )
