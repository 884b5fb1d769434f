"""Shard files: what is written is read, and what was damaged is named."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conf.errors import DataError
from data.shards.shards import (
    ShardIndex,
    ShardInfo,
    ShardReader,
    finished_shard,
    read_index,
    text_sha256,
    token_dtype,
    write_index,
    write_shard,
)
from data.sources.finite import Split
from data.windows import IndexedWindows

DOCUMENTS = [[5, 6, 7], [8], [], [9, 10, 11, 12, 13]]
TEXT = ["abc", "d", "", "efghi"]


@pytest.fixture
def reader(tmp_path: Path) -> ShardReader:
    return ShardReader(
        tmp_path,
        write_shard(tmp_path, "s", "train", DOCUMENTS, pieces=100, text=TEXT, unknown=Counter("bdb")),
        "uint16",
    )


def test_round_trip(reader: ShardReader) -> None:
    documents = [reader.tokens[a:b].tolist() for a, b in zip(reader.offsets, reader.offsets[1:], strict=False)]
    assert documents == DOCUMENTS
    assert reader.tokens.dtype == np.uint16


def test_wide_vocabularies_use_four_bytes(tmp_path: Path) -> None:
    assert (token_dtype(1 << 16), token_dtype((1 << 16) + 1)) == ("uint16", "uint32")
    info = write_shard(tmp_path, "w", "train", [[70_000, 3]], pieces=100_000, text=["x"], unknown=Counter())
    assert ShardReader(tmp_path, info, "uint32").tokens.tolist() == [70_000, 3]


def test_only_whole_shards_of_the_same_text_count_as_finished(tmp_path: Path, reader: ShardReader) -> None:
    def finished(name: str = "s", split: Split = "train", text: Sequence[str] = TEXT) -> ShardInfo | None:
        return finished_shard(tmp_path, name, split=split, text=text_sha256(text), dtype="uint16")

    assert finished() == reader.info
    assert finished(text=[*TEXT[:-1], "efghI"]) is None
    assert finished("other") is None
    assert finished(split="validation") is None
    record, tokens = tmp_path / "s.json", tmp_path / "s.tokens"
    for path, content in ((record, b"{"), (record, b'{"name": "s"}'), (tokens, b"")):
        before = path.read_bytes()
        path.write_bytes(content)
        assert finished() is None
        path.write_bytes(before)
    assert finished() == reader.info


def some_index(tmp_path: Path) -> ShardIndex:
    info = write_shard(tmp_path, "s", "train", DOCUMENTS, pieces=100, text=TEXT, unknown=Counter("bdb"))
    return ShardIndex(
        format=3, tokenizer="t", source="x", pieces=100, dtype="uint16", shards=(info,), train_counts=tuple(range(100))
    )


def test_an_index_reads_back_and_every_changed_byte_of_it_is_found(tmp_path: Path) -> None:
    index = some_index(tmp_path)
    write_index(tmp_path, index, b"model")
    assert read_index(tmp_path) == index
    path = tmp_path / "index.json"
    content = path.read_bytes()
    for place in range(0, len(content) - 1, 3):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(DataError, match=r"index\.json: .* `pointsman prepare` again"):
            read_index(tmp_path)


def test_characters_are_counted(tmp_path: Path) -> None:
    info = some_index(tmp_path).shards[0]
    assert (info.characters, info.unknown, info.unknown_sample) == (9, 3, "bd")


def test_an_index_of_the_first_format_is_read(tmp_path: Path) -> None:
    """It has no checksum of its own, and characters were not counted."""
    index = some_index(tmp_path)
    (info,) = index.shards
    info = dataclasses.replace(info, characters=0, unknown=0, unknown_sample="")
    index = dataclasses.replace(index, format=1, shards=(info,))
    tree = dataclasses.asdict(index)
    for name in ("characters", "unknown", "unknown_sample"):
        del tree["shards"][0][name]
    (tmp_path / "index.json").write_text(json.dumps(tree))
    assert read_index(tmp_path) == index
    for wrong in ({"shards": 5}, {"shards": [5]}, {"dtype": "float"}, {"pieces": "x"}, {"train_counts": None}):
        (tmp_path / "index.json").write_text(json.dumps({**tree, **wrong}))
        with pytest.raises(DataError, match=r"index\.json: "):
            read_index(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"train_counts": []}, "train_counts are not 100 whole numbers"),
        ({"train_counts": [1] * 101}, "train_counts are not"),
        *(({"train_counts": [wrong] * 100}, "train_counts are not") for wrong in ("a", 1.5, -1, None, [1], 1 << 63)),
        ({"pieces": 1 << 90}, "pieces is 1237940039285380274899124224"),
        *(
            ({"name": wrong}, "is no name of one shard")
            for wrong in ("../s", "/s", "", "a\0", "\ud800", "s" * 999, "s\n")
        ),
        *(({"split": wrong}, "s is of split") for wrong in ("test", 3, [])),
        ({"documents": -1}, "documents is -1, not at least 0"),
        ({"unknown": -1}, "unknown is -1"),
    ],
)
def test_what_an_index_says_is_checked_whoever_wrote_it(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    index = some_index(tmp_path)
    ours = {name: value for name, value in change.items() if hasattr(index, name)}
    shard = dataclasses.replace(index.shards[0], **{name: v for name, v in change.items() if name not in ours})
    write_index(tmp_path, dataclasses.replace(index, shards=(shard,), **ours), b"model")
    with pytest.raises(DataError, match=rf"index\.json: .*{says}.* `pointsman prepare` again"):
        read_index(tmp_path)


def test_a_shard_is_in_an_index_once(tmp_path: Path) -> None:
    index = some_index(tmp_path)
    write_index(tmp_path, dataclasses.replace(index, shards=index.shards * 2), b"model")
    with pytest.raises(DataError, match=r"'s' is no name of one shard"):
        read_index(tmp_path)


def test_a_folder_without_index_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="pointsman prepare"):
        read_index(tmp_path)


@pytest.mark.parametrize("raw", [2, 3, 4, 20])
def test_windows_across_shards_match_naive_slices(tmp_path: Path, raw: int) -> None:
    readers = [
        ShardReader(
            tmp_path,
            write_shard(tmp_path, f"s{n}", "train", documents, pieces=100, text=TEXT, unknown=Counter("bdb")),
            "uint16",
        )
        for n, documents in enumerate((DOCUMENTS, [[]], [[20, 21], [22]]))
    ]
    flat = [token for documents in (DOCUMENTS, [[20, 21], [22]]) for document in documents for token in document]
    expected = [flat[i : i + raw] for i in range(0, len(flat) - raw + 1, raw)] or [flat]
    concat = IndexedWindows(readers, raw=raw, packing="concat")
    assert [window.tolist() for window in concat.get(np.arange(concat.count))] == expected
    cuts = [d[i : i + raw] for d in [*DOCUMENTS, [20, 21], [22]] for i in range(0, len(d), raw)]
    document = IndexedWindows(readers, raw=raw, packing="document")
    assert [w.tolist() for w in document.get(np.arange(document.count))] == [c for c in cuts if len(c) > 1]
    assert document.skipped == 4, "two empty documents and two of one token"
