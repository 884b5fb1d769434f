"""The tokenizer of a streamed source: a given file, or one trained on the first lines of the stream and cached."""

from __future__ import annotations

from pathlib import Path

from conf.schema import DataConfig
from data.files import locked, write_atomic
from data.streams.stream import stream_fingerprint, stream_texts
from data.text.scan import Progress, tokenizer_path
from data.text.tokenizer import Tokenizer
from data.text.train_tokenizer import text_lines, train_tokenizer


def stream_tokenizer(data: DataConfig, *, progress: Progress = lambda text: None) -> Tokenizer:
    """Raises DataError when the stream or the tokenizer file cannot be read."""
    if data.tokenizer is not None:
        return Tokenizer.from_file(Path(data.tokenizer), sentinels=data.sentinels)
    path = tokenizer_path(stream_fingerprint(data), data)
    with locked(path.with_suffix(".lock")):
        if not path.is_file():
            progress(f"training a tokenizer of {data.tokenizer_vocab} pieces on {data.tokenizer_lines} streamed lines")
            lines = text_lines(stream_texts(data))
            first = (line for _, line in zip(range(data.tokenizer_lines), lines, strict=False))
            write_atomic(path, train_tokenizer(first, pieces=data.tokenizer_vocab))
    return Tokenizer.from_file(path, sentinels=data.sentinels)
