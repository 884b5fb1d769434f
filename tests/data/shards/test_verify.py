"""Shards are verified before use, once: damage is named, a user's folder is left alone, the cache mends itself."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from conf.errors import DataError
from conf.schema import RunConfig
from data.corpus import open_corpus
from data.files import sha256_bytes
from data.notice import silent
from data.prepare import prepare_data, prepare_finite
from data.shards import verify
from data.shards.shards import read_index, write_index
from data.shards.verify import find_faults
from tests.data.helpers import same, stacked, steps, text_config, tiny_config


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """A folder of the user's."""
    return prepare_finite(
        text_config(tmp_path, f"data.cache_dir={tmp_path / 'once'}").data, out=tmp_path / "out"
    ).folder


def shards_config(tmp_path: Path, folder: Path) -> RunConfig:
    return tiny_config(tmp_path, "data=shards", f"data.files=['{folder}']")


def change(path: Path) -> None:
    """One bit in the middle, and the times as they were: only the inode's own time tells."""
    times = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def files(folder: Path, *, hidden: bool = False) -> dict[Path, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path: path.read_bytes() for path in found if hidden or not path.name.startswith(".")}


@pytest.mark.parametrize("opens", [open_corpus, prepare_data], ids=["opening", "preparing"])
@pytest.mark.parametrize("pattern", ["train-*.tokens", "validation-*.offsets", "index.json", "tokenizer.model"])
@pytest.mark.parametrize("seen", [True, False], ids=["seen whole before", "never seen"])
def test_a_folder_of_the_user_s_is_refused_by_file_and_left_alone(
    tmp_path: Path, prepared: Path, opens: Callable[[RunConfig], object], pattern: str, seen: bool
) -> None:
    cfg = shards_config(tmp_path, prepared)
    if seen:
        open_corpus(cfg)
    if (opens, pattern) == (prepare_data, "tokenizer.model"):
        return  # it is looked at when it is opened
    (path,) = prepared.glob(pattern)
    change(path)
    before = files(prepared, hidden=True)
    with pytest.raises(DataError, match=path.name):
        opens(cfg)
    assert files(prepared, hidden=True) == before


def test_missing_and_cut_files_are_told_with_their_sizes(tmp_path: Path, prepared: Path) -> None:
    (path,) = prepared.glob("train-*.tokens")
    os.truncate(path, 100)
    with pytest.raises(DataError, match=r"\.tokens: has 100 bytes, [\d,]+ were written; restore it, or write"):
        open_corpus(shards_config(tmp_path, prepared))
    path.unlink()
    with pytest.raises(DataError, match=r"\.tokens: is missing, [\d,]+ were written"):
        open_corpus(shards_config(tmp_path, prepared))


def test_ids_that_no_tokenizer_knows_are_told_with_their_place(tmp_path: Path, prepared: Path) -> None:
    """Checksums that fit do not help."""
    index = read_index(prepared)
    (train,) = (shard for shard in index.shards if shard.split == "train")
    tokens = np.fromfile(prepared / f"{train.name}.tokens", dtype="<u2")
    tokens[1234] = index.pieces
    (prepared / f"{train.name}.tokens").write_bytes(tokens.tobytes())
    forged = dataclasses.replace(train, tokens_sha256=sha256_bytes(tokens.tobytes()))
    others = tuple(shard for shard in index.shards if shard is not train)
    model = (prepared / "tokenizer.model").read_bytes()
    write_index(prepared, dataclasses.replace(index, shards=(forged, *others)), model)
    with pytest.raises(DataError, match=r"train-.*\.tokens: token 1,234 has id 120, outside the tokenizer's 120"):
        open_corpus(shards_config(tmp_path, prepared))


def test_a_file_is_read_once_until_it_changes(tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, index = shards_config(tmp_path, prepared).data, read_index(prepared)
    read: list[str] = []
    fault_of = verify._fault_of
    monkeypatch.setattr(verify, "_fault_of", lambda file, pieces: read.append(file.path.name) or fault_of(file, pieces))
    assert find_faults(prepared, index, data, silent) == []
    assert len(read) == 4, "tokens and offsets of two shards"
    assert find_faults(prepared, index, data, silent) == []
    assert len(read) == 4
    os.utime(next(prepared.glob("train-*.tokens")))
    assert find_faults(prepared, index, data, silent) == []
    assert len(read) == 5
    (memory,) = (tmp_path / "cache" / "verified").glob("*.json")
    for times, damage in enumerate((b"{", b"[" * 100_000, b"[]"), 1):
        memory.write_bytes(damage)
        assert find_faults(prepared, index, data, silent) == []
        assert len(read) == 5 + 4 * times, "a damaged memory is no memory"


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path: Path, prepared: Path) -> None:
    (tmp_path / "file").write_text("")
    cfg = tiny_config(tmp_path, "data=shards", f"data.files=['{prepared}']", f"data.cache_dir={tmp_path / 'file'}")
    assert find_faults(prepared, read_index(prepared), cfg.data, silent) == []


def test_long_checks_tell_where_they_stand(tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "_PROGRESS_S", 0.0)
    told: list[str] = []
    prepare_data(shards_config(tmp_path, prepared), progress=told.append)
    assert told[-1] == "checking shards: 0.0 of 0.0 GB"


def test_the_cache_mends_whatever_file_of_it_is_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = text_config(tmp_path)
    prepare_data(cfg)
    whole, batch = open_corpus(cfg).fingerprint, stacked(steps(cfg, 1)[0])
    cache = Path(cfg.data.cache_dir)
    entries = files(cache)
    kinds = {path: path.relative_to(cache).parts[0] for path in entries}
    assert set(kinds.values()) == {"scans", "tokenizers", "shards", "verified"}
    for path, content in entries.items():
        # read by nobody while the index is there; forgotten, which costs another look
        harmless = kinds[path] == "verified" or (path.suffix == ".json" and path.name[:5] in ("train", "valid"))
        for damage in (change, lambda path: os.truncate(path, path.stat().st_size // 2), lambda path: path.unlink()):
            capsys.readouterr()
            damage(path)
            gone = not path.exists()
            prepare_data(cfg)
            told = capsys.readouterr().err
            assert open_corpus(cfg).fingerprint == whole, path
            assert same(stacked(steps(cfg, 1)[0]), batch), path
            if harmless:
                path.write_bytes(content)
                continue
            assert path.read_bytes() == content
            assert gone or path.with_name(f"{path.name}.damaged").exists()
            # what begins an entry is made without a word where it is gone
            silently = gone and (kinds[path] != "shards" or path.name == "index.json")
            assert told.count("\n") == (0 if silently else 1), (path, told)
            assert silently or told.startswith(f"note: {path}: ")
