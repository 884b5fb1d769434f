"""Lengths of the default task: how many tokens of text a window holds and what span corruption makes of them."""

from __future__ import annotations

from typing import NamedTuple

from conf.schema import DataConfig, RawDataConfig, Stack


class SpanLengths(NamedTuple):
    """Token counts of one span-corruption example."""

    raw: int  # tokens of text before corruption
    inputs: int  # encoder tokens with sentinels and EOS
    targets: int  # decoder targets with sentinels and EOS

    @property
    def spans(self) -> int:
        """Corrupted spans of the window: each puts one sentinel on either side."""
        return (self.inputs + self.targets - self.raw - 2) // 2


def corrupted_lengths(raw: int, noise_density: float, mean_span_length: float) -> SpanLengths:
    """Lengths after corrupting `raw` tokens: one sentinel per span on each side, one EOS each (T5, section 3.1.4)."""
    noise = min(max(round(raw * noise_density), 1), raw - 1)
    spans = max(round(noise / mean_span_length), 1)
    return SpanLengths(raw, raw - noise + spans + 1, noise + spans + 1)


def span_lengths(data: RawDataConfig) -> SpanLengths:
    """The largest window of text whose corrupted form fits `encoder_length` (T5: 512 takes 568 tokens, targets 114)."""
    raw = 2
    while corrupted_lengths(raw + 1, data.noise_density, data.mean_span_length).inputs <= data.encoder_length:
        raw += 1
    return corrupted_lengths(raw, data.noise_density, data.mean_span_length)


def stack_length(data: DataConfig, stack: Stack) -> int:
    """Tokens of one sequence in a stack, padding included."""
    return data.encoder_length if stack == "encoder" else data.decoder_length
