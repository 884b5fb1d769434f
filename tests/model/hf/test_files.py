"""Reading folders that nobody vouches for: each is refused naming the file or tensor, and nothing is executed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from conf.errors import CheckpointError
from model.hf.files import BIN, SAFE, SAFE_INDEX, TensorFolder, read_json, read_kept, write_kept, write_tensors

VALUES = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4)}


def index(folder: Path, weight_map: dict[str, str]) -> None:
    (folder / SAFE_INDEX).write_text(json.dumps({"weight_map": weight_map}))


def test_one_file_and_shards_hold_the_same(tmp_path: Path) -> None:
    shapes = {name: tuple(value.shape) for name, value in VALUES.items()}
    for limit, files in (
        (1000, [SAFE]),
        (16, ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]),
    ):
        folder = tmp_path / str(limit)
        folder.mkdir()
        written = write_tensors(folder, shapes, VALUES.__getitem__, dtype=torch.float32, shard_bytes=limit)
        assert written[: len(files)] == files
        read = TensorFolder(folder)
        assert read.names == VALUES.keys()
        assert all(torch.equal(read.read(name), value) for name, value in VALUES.items())
        assert read.shape("a") == (2, 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_as_it_is(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({"a": VALUES["a"].to(dtype)}, tmp_path / SAFE)
    folder = TensorFolder(tmp_path)
    assert folder.dtypes() == {str(dtype).removeprefix("torch.")}
    assert folder.read("a").dtype == dtype


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "\ud800"])
def test_a_shard_whose_name_no_file_can_have_is_missing(tmp_path: Path, name: str) -> None:
    index(tmp_path, {"a": name})
    with pytest.raises(CheckpointError, match="1 of 1 shards are missing"):
        TensorFolder(tmp_path)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "sub/x.safetensors", "..", ""])
def test_an_index_cannot_name_files_outside_the_folder(tmp_path: Path, name: str) -> None:
    save_file(VALUES, tmp_path / "outside.safetensors")
    folder = tmp_path / "inside"
    folder.mkdir()
    index(folder, {"a": name})
    with pytest.raises(CheckpointError, match="outside the folder"):
        TensorFolder(folder)


def test_missing_shards_and_tensors_and_duplicates_are_named(tmp_path: Path) -> None:
    index(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    save_file({"a": VALUES["a"]}, tmp_path / "one.safetensors")
    with pytest.raises(CheckpointError, match=r"1 of 2 shards are missing: two\.safetensors"):
        TensorFolder(tmp_path)
    save_file({"c": VALUES["b"]}, tmp_path / "two.safetensors")
    with pytest.raises(CheckpointError, match=r"two\.safetensors: lacks b"):
        TensorFolder(tmp_path)
    save_file(VALUES, tmp_path / "two.safetensors")
    with pytest.raises(CheckpointError, match=r"tensor a is in one\.safetensors and in two\.safetensors"):
        TensorFolder(tmp_path)


def test_values_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    save_file({"n": torch.tensor([1.0, float("nan")]), "q": torch.ones(2, dtype=torch.int8)}, tmp_path / SAFE)
    folder = TensorFolder(tmp_path)
    with pytest.raises(CheckpointError, match="1 of 2 values of n are NaN"):
        folder.read("n")
    with pytest.raises(CheckpointError, match=r"q is torch\.int8, strided"):
        folder.read("q")


def test_a_file_cut_short_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has none of"):
        TensorFolder(tmp_path)
    save_file(VALUES, tmp_path / SAFE)
    (tmp_path / SAFE).write_bytes((tmp_path / SAFE).read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        TensorFolder(tmp_path)


def test_a_json_key_given_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": 1, "a": 2}')
    with pytest.raises(CheckpointError, match="a given twice"):
        read_json(tmp_path / "x.json")


class Trap:
    """Unpickling it makes a directory."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_pickled_files_are_read_as_weights_alone(tmp_path: Path) -> None:
    torch.save(VALUES, tmp_path / BIN)
    assert torch.equal(TensorFolder(tmp_path).read("a"), VALUES["a"])
    torch.save({"a": Trap(tmp_path / "executed")}, tmp_path / BIN)
    with pytest.raises(CheckpointError, match="never executed"):
        TensorFolder(tmp_path)
    assert not (tmp_path / "executed").exists()
    for content in (b"\x80\x02.", b"\x80\x02(t.", b"cbuiltins\neval\n."):
        (tmp_path / BIN).write_bytes(content)
        with pytest.raises(CheckpointError, match=r"as weights alone \((?!.*`weights_only`)"):
            TensorFolder(tmp_path)
    torch.save({"a": 3}, tmp_path / BIN)
    with pytest.raises(CheckpointError, match="a are no tensors"):
        TensorFolder(tmp_path)


def test_a_kept_file_carries_its_own_checksum(tmp_path: Path) -> None:
    path = tmp_path / "kept.safetensors"
    for values in (VALUES, {name: value.bfloat16() for name, value in VALUES.items()}):
        write_kept(path, values)
        content = path.read_bytes()
        assert all(torch.equal(value, values[name]) for name, value in read_kept(path).items())
        for place in range(0, len(content), 7):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            try:
                again = read_kept(path)
            except CheckpointError:
                continue
            assert all(torch.equal(value, values[name]) for name, value in again.items()), place
    save_file(VALUES, path)  # as older releases wrote it
    assert read_kept(path).keys() == VALUES.keys()
