"""The tokenizer of a streamed source: a given file, or one trained on the first lines of the stream and cached."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from conf.schema import DataConfig
from data.notice import Progress, silent
from data.streams.stream import stream_fingerprint, stream_texts
from data.text.scan import tokenizer_of
from data.text.tokenizer import Tokenizer
from data.text.train_tokenizer import text_lines


def stream_tokenizer(data: DataConfig, *, progress: Progress = silent) -> Tokenizer:
    """Raises DataError when the stream or the tokenizer file cannot be read."""

    def lines() -> Iterator[str]:
        progress(f"training a tokenizer of {data.tokenizer_vocab} pieces on {data.tokenizer_lines} streamed lines")
        return islice(text_lines(stream_texts(data)), data.tokenizer_lines)

    return tokenizer_of(stream_fingerprint(data), data, lines)
