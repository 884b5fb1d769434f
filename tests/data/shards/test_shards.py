"""Shard files: what is written is read, and what was damaged is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from conf.errors import DataError
from data.shards.shards import (
    ShardReader,
    check_shard,
    finished_shard,
    read_index,
    text_sha256,
    token_dtype,
    write_shard,
)
from data.windows import IndexedWindows

DOCUMENTS = [[5, 6, 7], [8], [], [9, 10, 11, 12, 13]]
TEXT = ["abc", "d", "", "efghi"]


@pytest.fixture
def reader(tmp_path: Path) -> ShardReader:
    return ShardReader(tmp_path, write_shard(tmp_path, "s", "train", DOCUMENTS, pieces=100, text=TEXT), "uint16")


def test_round_trip(reader: ShardReader) -> None:
    documents = [reader.tokens[a:b].tolist() for a, b in zip(reader.offsets, reader.offsets[1:], strict=False)]
    assert documents == DOCUMENTS
    assert reader.tokens.dtype == np.uint16


def test_wide_vocabularies_use_four_bytes(tmp_path: Path) -> None:
    assert (token_dtype(1 << 16), token_dtype((1 << 16) + 1)) == ("uint16", "uint32")
    info = write_shard(tmp_path, "w", "train", [[70_000, 3]], pieces=100_000, text=["x"])
    assert ShardReader(tmp_path, info, "uint32").tokens.tolist() == [70_000, 3]


def test_damage_is_named(tmp_path: Path, reader: ShardReader) -> None:
    path = tmp_path / "s.tokens"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"\x63")
    check_shard(tmp_path, reader.info, token_bytes=2, checksums=False)
    with pytest.raises(DataError, match=r"s\.tokens: its sha256"):
        check_shard(tmp_path, reader.info, token_bytes=2, checksums=True)
    path.write_bytes(content[:-2])
    with pytest.raises(DataError, match=r"s\.tokens: has 16 bytes; needs 18"):
        check_shard(tmp_path, reader.info, token_bytes=2, checksums=False)
    path.unlink()
    with pytest.raises(DataError, match=r"s\.tokens: is missing"):
        check_shard(tmp_path, reader.info, token_bytes=2, checksums=False)


def test_only_whole_shards_of_the_same_text_count_as_finished(tmp_path: Path, reader: ShardReader) -> None:
    assert finished_shard(tmp_path, "s", text=text_sha256(TEXT)) == reader.info
    assert finished_shard(tmp_path, "s", text=text_sha256([*TEXT[:-1], "efghI"])) is None
    assert finished_shard(tmp_path, "other", text=text_sha256(TEXT)) is None
    (tmp_path / "s.tokens").write_bytes(b"")
    assert finished_shard(tmp_path, "s", text=text_sha256(TEXT)) is None


def test_a_folder_without_index_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="pointsman prepare"):
        read_index(tmp_path)


@pytest.mark.parametrize("raw", [2, 3, 4, 20])
def test_windows_across_shards_match_naive_slices(tmp_path: Path, raw: int) -> None:
    readers = [
        ShardReader(tmp_path, write_shard(tmp_path, f"s{n}", "train", documents, pieces=100, text=TEXT), "uint16")
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
