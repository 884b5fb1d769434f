"""The reader of recorded cases: what it refuses and how it measures."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.golden.reader import distance, read_cases, read_table


def write_folder(folder: Path, *, version: int = 1) -> Path:
    save_file({"x": torch.arange(3.0)}, folder / "a.safetensors")
    (folder / "t_table.json").write_text(json.dumps({"columns": ["n", "m"], "rows": [[1, 2], [3, None]]}))

    def entry(name: str) -> dict:
        data = (folder / name).read_bytes()
        return {"file": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    case = {"case": "a", "config": {"experts": 2}, "scalars": {"loss": 1.5}, **entry("a.safetensors")}
    manifest = {"format": version, "cases": [case], "tables": [entry("t_table.json")]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_reads_cases_and_tables(tmp_path):
    folder = write_folder(tmp_path)
    (case,) = read_cases(folder)
    assert (case.name, case.config, case.scalars) == ("a", {"experts": 2}, {"loss": 1.5})
    assert torch.equal(case.arrays()["x"], torch.arange(3.0))
    assert read_table(folder, "t_table.json") == [{"n": 1, "m": 2}, {"n": 3, "m": None}]


def test_a_changed_byte_is_refused(tmp_path):
    folder = write_folder(tmp_path)
    data = bytearray((folder / "a.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "a.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match="not the file"):
        read_cases(folder)[0].arrays()


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match="format 2"):
        read_cases(write_folder(tmp_path, version=2))


def test_distance_is_relative_to_the_largest_entry():
    assert distance(torch.tensor([1.0, 4.0]), torch.tensor([2.0, 4.0])) == 0.25
    assert distance(torch.tensor([0.5]), torch.tensor([0.0])) == 0.5
