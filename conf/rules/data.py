"""Checks of the data section: sources and their files, the task, vocabulary."""

from __future__ import annotations

from collections.abc import Iterator

from conf.derived.topology import topology
from conf.errors import ConfigError
from conf.rules.ranges import at_least, divisors, listed, nearest, one_of, share
from conf.schema import RawDataConfig, RunConfig
from conf.sources import PLACES, SOURCES
from conf.tasks.table import TASKS, check_sentinels, window_lengths

Problems = Iterator[ConfigError]
LEAST_COVERAGE = 0.98  # of data.character_coverage
SPECIAL_PIECES, BYTES = 5, 256  # of a tokenizer trained here: padding, EOS, unknown, line feed, tab; and with fallback


def check_data(data: RawDataConfig) -> Problems:
    """Ranges of single fields, and that the chosen source is told where its text is."""
    for name in ("stream_lanes", "stream_window", "tokenizer_lines", "prepare_workers"):
        yield from at_least(f"data.{name}", getattr(data, name), 1)
    least = SPECIAL_PIECES + BYTES * data.byte_fallback + 1
    yield from at_least("data.tokenizer_vocab", data.tokenizer_vocab, least)
    yield from at_least("data.encoder_length", data.encoder_length, 4)
    if data.decoder_length is not None:
        yield from at_least("data.decoder_length", data.decoder_length, 2)
    for name in ("seed", "workers", "sentinels"):
        yield from at_least(f"data.{name}", getattr(data, name), 0)
    yield from share("data.validation_fraction", data.validation_fraction, 0.02)
    if not 0 < data.noise_density <= 0.9:
        yield ConfigError(
            "data.noise_density", got=data.noise_density, needs="a number in (0, 0.9]", hint="data.noise_density=0.15"
        )
    if data.mean_span_length < 1:
        yield ConfigError(
            "data.mean_span_length", got=data.mean_span_length, needs="at least 1", hint="data.mean_span_length=3"
        )
    if not data.cache_dir:
        yield ConfigError("data.cache_dir", got="", needs="a folder", hint="data.cache_dir=cache")
    if not LEAST_COVERAGE <= data.character_coverage <= 1:
        yield ConfigError(
            "data.character_coverage",
            got=data.character_coverage,
            needs=f"a number in [{LEAST_COVERAGE}, 1], which is what sentencepiece takes",
            hint="data.character_coverage=0.9995",
        )
    yield from one_of("data.task", data.task, TASKS)
    yield from _check_source(data)


def _check_source(data: RawDataConfig) -> Problems:
    yield from one_of("data.source", data.source, SOURCES)
    row = SOURCES.get(data.source)
    if row is None:
        return
    if row.needs and not any(getattr(data, name) for name in row.needs):
        first = row.needs[0]
        yield ConfigError(f"data.{first}", got=getattr(data, first), needs=row.holding, hint=row.example)
    for name in PLACES:  # text that would silently not be read
        if getattr(data, name) and name not in row.reads:
            others = [other for other, of in SOURCES.items() if name in of.reads]
            yield ConfigError(
                f"data.{name}",
                got=getattr(data, name),
                needs=f"a source that reads it ({', '.join(others)}), not {data.source}",
                hint=f"data={SOURCES[others[0]].preset or others[0]}",
            )


def check_task(cfg: RunConfig) -> Problems:
    """The targets of a full window fit the decoder, and the rules of the task hold."""
    data, lengths = cfg.data, window_lengths(cfg.data)
    if data.decoder_length < lengths.targets:
        yield ConfigError(
            "data.decoder_length",
            got=data.decoder_length,
            needs=f"at least {lengths.targets}, the targets of encoder_length = {data.encoder_length}",
            hint=f"data.decoder_length={lengths.targets}",
        )
    yield from TASKS[data.task].check(data)
    may_have_own = data.tokenizer is not None or SOURCES[data.source].kind == "shards"
    if data.sentinels or not may_have_own:  # else told when the tokenizer is read
        yield from check_sentinels(data, data.sentinels)


def check_vocabulary(cfg: RunConfig) -> Problems:
    """The model knows every id of a tokenizer trained here (a given one is checked when it is read)."""
    needed = cfg.data.tokenizer_vocab + cfg.data.sentinels
    if cfg.data.tokenizer is None and cfg.model.vocab_size < needed:
        yield ConfigError(
            "model.vocab_size",
            got=cfg.model.vocab_size,
            needs=f"at least data.tokenizer_vocab + data.sentinels = {needed}",
            hint=f"model.vocab_size={needed}",
        )


def check_lanes(cfg: RunConfig) -> Problems:
    """Every data-parallel rank reads the same number of a stream's lanes."""
    lanes, dp = cfg.data.stream_lanes, topology(cfg).dp
    if SOURCES[cfg.data.source].kind == "stream" and lanes % dp:
        yield ConfigError(
            "data.stream_lanes",
            got=lanes,
            needs=f"a multiple of data parallelism = {dp}",
            hint=f"data.stream_lanes={-(-lanes // dp) * dp}, or data parallelism of {listed(divisors(lanes))}"
            f" (nearest: {nearest(dp, divisors(lanes))})",
        )
