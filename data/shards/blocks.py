"""Consecutive documents as the unit of preparation: one block becomes one shard, in whichever process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from data.batch import UNK_ID
from data.shards.shards import ShardInfo, finished_shard, text_sha256, token_dtype, write_shard
from data.sources.finite import SPLITS, Document, Split
from data.text.tokenizer import Tokenizer

_BATCH_DOCUMENTS = 64


class Block(NamedTuple):
    """Documents of one shard."""

    name: str
    split: Split
    texts: list[str]


def blocks_of(documents: Iterable[Document], shard_bytes: int) -> Iterator[Block]:
    """Consecutive documents of each split in blocks of about `shard_bytes`; independent of the number of workers."""
    texts: dict[Split, list[str]] = {split: [] for split in SPLITS}
    sizes, numbers = dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0)
    for split, text in documents:
        texts[split].append(text)
        sizes[split] += len(text.encode())
        if sizes[split] >= shard_bytes:
            yield Block(f"{split}-{numbers[split]:05d}", split, texts[split])
            texts[split], sizes[split] = [], 0
            numbers[split] += 1
    for split in SPLITS:
        if texts[split]:
            yield Block(f"{split}-{numbers[split]:05d}", split, texts[split])


def tokenize_block(folder: str, block: Block, model: bytes) -> ShardInfo:
    """Tokenise and write one shard, unless it was finished before. Runs in a background process."""
    tokenizer = Tokenizer(model, sentinels=0, origin="tokenizer")
    name = f"{block.name}-{tokenizer.fingerprint[:8]}"
    done = finished_shard(
        Path(folder), name, split=block.split, text=text_sha256(block.texts), dtype=token_dtype(tokenizer.pieces)
    )
    if done is not None:
        return done
    ids: list[list[int]] = []
    for start in range(0, len(block.texts), _BATCH_DOCUMENTS):
        ids += tokenizer.encode_documents(block.texts[start : start + _BATCH_DOCUMENTS])
    unknown: Counter[str] = Counter()
    for text, tokens in zip(block.texts, ids, strict=True):
        if UNK_ID in tokens:
            unknown += tokenizer.unknown_characters(text)
    return write_shard(Path(folder), name, block.split, ids, pieces=tokenizer.pieces, text=block.texts, unknown=unknown)
