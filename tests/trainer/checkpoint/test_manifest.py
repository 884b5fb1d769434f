from pathlib import Path

import pytest

from conf.errors import CheckpointError
from trainer.checkpoint.manifest import Chunk, FileEntry, Manifest, TensorEntry, load_manifest

MANIFEST = Manifest(
    step=7,
    tensors={
        "master/w": TensorEntry(
            shape=(4, 2),
            dtype="float32",
            dims=None,
            chunks=(Chunk(file="a", offsets=(0, 0), shape=(2, 2)), Chunk(file="a", offsets=(2, 0), shape=(2, 2))),
        ),
        "row/w": TensorEntry(
            shape=(4,), dtype="float32", dims=(0,), chunks=(Chunk(file="a", offsets=(0,), shape=(4,)),)
        ),
    },
    files={"a": FileEntry(size=1, sha256="00"), "state.json": FileEntry(size=2, sha256="11")},
)


def test_round_trip(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(MANIFEST.encode())
    assert load_manifest(tmp_path) == MANIFEST


def test_every_changed_byte_is_found(tmp_path: Path) -> None:
    raw = MANIFEST.encode()
    for i in range(len(raw)):
        changed = raw[:i] + bytes([raw[i] ^ (0x01 if i % 2 else 0x20)]) + raw[i + 1 :]
        (tmp_path / "manifest.json").write_bytes(changed)
        with pytest.raises(CheckpointError, match=r"manifest\.json"):
            load_manifest(tmp_path)


@pytest.mark.parametrize("length", [0, 1, 100])
def test_truncated(tmp_path: Path, length: int) -> None:
    (tmp_path / "manifest.json").write_bytes(MANIFEST.encode()[:length])
    with pytest.raises(CheckpointError, match="not a manifest"):
        load_manifest(tmp_path)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not complete"):
        load_manifest(tmp_path)


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "x/y", ".."])
def test_a_file_outside_the_directory_is_refused(tmp_path: Path, name: str) -> None:
    bad = Manifest(step=1, tensors={}, files={name: FileEntry(size=1, sha256="0"), **MANIFEST.files})
    (tmp_path / "manifest.json").write_bytes(bad.encode())
    with pytest.raises(CheckpointError, match="leaves the checkpoint"):
        load_manifest(tmp_path)


def test_a_chunk_in_a_file_without_digest_is_refused(tmp_path: Path) -> None:
    bad = Manifest(step=1, tensors=MANIFEST.tensors, files={"state.json": MANIFEST.files["state.json"]})
    (tmp_path / "manifest.json").write_bytes(bad.encode())
    with pytest.raises(CheckpointError, match="no digest"):
        load_manifest(tmp_path)
