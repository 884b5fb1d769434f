"""Validation of a streamed source: its first held-out windows, read once and cached for every rank."""

from __future__ import annotations

import io
import json

import numpy as np

from conf.schema import RunConfig
from conf.tasks.table import window_lengths
from data.cache import cached
from data.files import sha256_bytes
from data.notice import Progress, silent
from data.sources.finite import cache_folder
from data.streams.stream import stream_fingerprint, validation_windows
from data.text.tokenizer import Tokenizer
from data.windows import Windows


def stream_validation(cfg: RunConfig, tokenizer: Tokenizer, *, progress: Progress = silent) -> Windows:
    """As many windows as an evaluation asks for, or all there are. Raises DataError when the text cannot be read."""
    wanted, raw = cfg.train.eval_batches * cfg.train.global_batch, window_lengths(cfg.data).raw
    if wanted == 0:
        return []

    def make() -> bytes:
        progress(f"reading {wanted} windows of validation text")
        windows = validation_windows(cfg.data, tokenizer, raw=raw, wanted=wanted)
        content, empty = io.BytesIO(), np.zeros(0, dtype=np.int64)
        np.savez(content, tokens=np.concatenate([empty, *windows]), lengths=np.array([len(w) for w in windows], int))
        return content.getvalue()

    settings = [stream_fingerprint(cfg.data), tokenizer.fingerprint, wanted, raw, cfg.data.packing]
    key = sha256_bytes(json.dumps(settings).encode())[:32]
    content = cached(cache_folder(cfg.data) / "stream_validation", key, ".npz", make)
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        return np.split(stored["tokens"], np.cumsum(stored["lengths"]))[:-1]
