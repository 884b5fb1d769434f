"""Small corpora and configurations for the data tests."""

from __future__ import annotations

import gzip
import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from conf.compose import compose
from conf.schema import RunConfig
from data.batch import StepBatch
from data.corpus import open_corpus
from data.loader import build_loader
from data.sources.finite import Split

_SYLLABLES = ("ka", "ro", "mi", "ten", "sul", "ab", "or", "vi", "de", "nu", "lop", "ge", "the", "x", "y", "qu")
WORDS = [
    *[
        "the",
        "cat",
        "sat",
        "on",
        "a",
        "mat",
        "and",
        "then",
        "def",
        "return",
        "value",
        "of",
        "class",
        "self",
        "big",
        "red",
        "house",
        "was",
        "here",
    ],
    *("".join(parts) for parts in itertools.product(_SYLLABLES, _SYLLABLES)),
]


def sentences(number: int, *, seed: int) -> str:
    """A made-up document of `number` lines."""
    rng = random.Random(seed)
    return "\n".join("  " * rng.randrange(3) + " ".join(rng.choices(WORDS, k=8)) for _ in range(number)) + "\n"


def write_jsonl(path: Path, documents: Sequence[str]) -> Path:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as handle:
        for number, text in enumerate(documents):
            handle.write(json.dumps({"text": text, "id": number}) + "\n")
    return path


def tiny_config(tmp_path: Path, *overrides: str) -> RunConfig:
    """64-token inputs, 8 sequences a step, a tokenizer of 120 pieces, everything cached below `tmp_path`."""
    return compose(
        [
            "data=text",
            f"data.cache_dir={tmp_path / 'cache'}",
            "data.tokenizer_vocab=120",
            "data.encoder_length=64",
            "data.validation_fraction=0.2",
            "data.workers=0",
            "data.prepare_workers=1",
            "train.global_batch=8",
            "train.eval_batches=2",
            *overrides,
        ]
    )


def text_config(tmp_path: Path, *overrides: str, documents: int = 60) -> RunConfig:
    """`tiny_config` on a JSONL file of made-up documents."""
    path = tmp_path / "corpus.jsonl"
    if not path.exists():
        write_jsonl(path, [sentences(3 + n % 7, seed=n) for n in range(documents)])
    return tiny_config(tmp_path, f"data.files=['{path}']", *overrides)


def steps(
    cfg: RunConfig, count: int, *, split: Split = "train", dp_rank: int = 0, dp_size: int = 1, start: int = 0
) -> list[StepBatch]:
    """The first `count` steps of a fresh loader."""
    with build_loader(open_corpus(cfg), cfg, split=split, dp_rank=dp_rank, dp_size=dp_size, start_step=start) as loader:
        return [batch for _, batch in zip(range(count), loader, strict=False)]


def stacked(batch: StepBatch) -> dict[str, np.ndarray]:
    """The arrays of a step with micro-batches joined."""
    names = ("inputs_BL", "targets_BT", "rows_B")
    return {name: np.concatenate([getattr(micro, name) for micro in batch.micro]) for name in names}


def same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(left[name], right[name]) for name in left)
