import copy
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
    files={"a": FileEntry(size=64, sha256="00" * 32), "state.json": FileEntry(size=2, sha256="11" * 32)},
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
    bad = Manifest(step=1, tensors={}, files={name: FileEntry(size=1, sha256="0" * 64), **MANIFEST.files})
    (tmp_path / "manifest.json").write_bytes(bad.encode())
    with pytest.raises(CheckpointError, match="does not leave the checkpoint"):
        load_manifest(tmp_path)


def test_a_chunk_in_a_file_without_digest_is_refused(tmp_path: Path) -> None:
    bad = Manifest(step=1, tensors=MANIFEST.tensors, files={"state.json": MANIFEST.files["state.json"]})
    (tmp_path / "manifest.json").write_bytes(bad.encode())
    with pytest.raises(CheckpointError, match="a file with a digest"):
        load_manifest(tmp_path)


def written(body: Any, **changes: Any) -> bytes:
    """A manifest whose digest is right, whatever it says."""
    text = {"manifest": body}
    digest = hashlib.sha256(canonical(body)).hexdigest()
    return canonical({**text, "sha256": digest, **changes})


def canonical(document: Any) -> bytes:
    return (json.dumps(document, sort_keys=True, indent=1) + "\n").encode("ascii")


VALUES = (
    None,
    True,
    0,
    -1,
    1.5,
    10**30,
    "",
    "x",
    "../a",
    "/a",
    "a\0b",
    [],
    [1],
    [-1],
    [True],
    ["x"],
    [[]],
    {},
    {"x": 1},
)


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where every value of a document is, itself included."""
    yield path
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


def mutations(body: Any) -> Iterator[tuple[str, Any]]:
    """The document with one value of another kind, one key lost, renamed or added: whatever else is right."""
    for path in places(body):
        for value in VALUES:
            changed = {"": copy.deepcopy(body)}
            node = changed
            for key in ("", *path)[:-1]:
                node = node[key]
            last = ("", *path)[-1]
            if type(node[last]) is not type(value) or node[last] != value:
                node[last] = value
                yield f"{path} = {value!r}", changed[""]
        for what in ("lost", "renamed", "added"):
            changed = {"": copy.deepcopy(body)}
            node = changed
            for key in ("", *path):
                parent, node = node, node[key]
            if what == "added" and isinstance(node, dict):
                node["surplus"] = {"size": 1}
            elif what == "lost" and isinstance(parent, dict) and path:
                del parent[path[-1]]
            elif what == "renamed" and isinstance(parent, dict) and path:
                parent["no such key"] = parent.pop(path[-1])
            else:
                continue
            yield f"{path} {what}", changed[""]


def test_a_manifest_of_any_other_form_is_a_damaged_checkpoint(tmp_path: Path) -> None:
    body = json.loads(MANIFEST.encode())["manifest"]
    tried, read = 0, []
    for what, changed in mutations(body):
        (tmp_path / "manifest.json").write_bytes(written(changed))
        tried += 1
        try:
            load_manifest(tmp_path)
            read.append(what)
        except CheckpointError:
            pass
    assert tried > 900
    # Another step, another size of a file that holds no tensor, tensors less, a moment of other dims: each could be.
    assert read == [
        "('files', 'state.json', 'size') = 0", "('step',) = 0", "('tensors',) = {}", "('tensors', 'master/w') lost",
        "('tensors', 'row/w') lost", "('tensors', 'row/w', 'dims') = None", "('tensors', 'row/w', 'dims') = [1]",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"dtype": "float31"}, r"tensors\.master/w\.dtype is 'float31'"),
        ({"shape": [4, -2]}, r"master/w\.shape is -2"),
        ({"shape": [4, 3]}, "no rank gave"),
        ({"dims": [0, 0]}, "different dims"),
        ({"chunks": []}, "no rank gave"),
        (
            {"shape": [1 << 40, 2], "chunks": [{"file": "a", "offsets": [0, 0], "shape": [1 << 40, 2]}]},
            r"a\.size is 64",
        ),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    body = json.loads(MANIFEST.encode())["manifest"]
    body["tensors"]["master/w"] |= change
    (tmp_path / "manifest.json").write_bytes(written(body))
    with pytest.raises(CheckpointError, match=named):
        load_manifest(tmp_path)


def test_pieces_that_overlap_and_patterns_that_would_take_for_ever_are_refused(tmp_path: Path) -> None:
    body = json.loads(MANIFEST.encode())["manifest"]
    entry = body["tensors"]["master/w"]
    entry["chunks"][1]["offsets"] = [1, 0]
    (tmp_path / "manifest.json").write_bytes(written(body))
    with pytest.raises(CheckpointError, match="overlap"):
        load_manifest(tmp_path)
    many = [{"file": "a", "offsets": [i, i, i], "shape": [2, 3, 5]} for i in range(500)]
    entry |= {"shape": [999, 999, 999], "chunks": many}
    (tmp_path / "manifest.json").write_bytes(written(body))
    with pytest.raises(CheckpointError, match="no layout"):
        load_manifest(tmp_path)


def test_a_manifest_that_is_no_object_or_no_file(tmp_path: Path) -> None:
    body = json.loads(MANIFEST.encode())["manifest"]
    for content in (b"[]", b"3", b"{}", b"null", canonical({"manifest": body}), written(body, sha256=3), b"[" * 9999):
        (tmp_path / "manifest.json").write_bytes(content)
        with pytest.raises(CheckpointError):
            load_manifest(tmp_path)
    (tmp_path / "manifest.json").unlink()
    os.mkfifo(tmp_path / "manifest.json")
    with pytest.raises(CheckpointError, match="no regular file"):
        load_manifest(tmp_path)
