"""Reads recorded cases of the reference codes: a manifest.json and the .safetensors files that it lists.

Every file is checked against the size and the sha256 of its manifest before use. Nothing here knows what is tested, so
a command that checks a folder can be built on it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load
from torch import Tensor

KEPT = Path(__file__).resolve().parent / "recordings"  # a small set, in every clone
GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden"  # the full set, beside the repository


@dataclass(frozen=True, kw_only=True)
class GoldenCase:
    """One run of a reference: its settings, scalar results and where its arrays are."""

    name: str
    config: dict[str, Any]
    scalars: dict[str, Any]
    path: Path
    size: int
    sha256: str
    shapes: dict[str, tuple[int, ...]] | None = None  # of the arrays, where the manifest lists them

    def arrays(self) -> dict[str, Tensor]:
        """All arrays by name, as stored (float32, int32, uint8).

        Raises ValueError if the file is not whole or does not hold the arrays that the manifest lists.
        """
        arrays = load(whole_file(self.path, self.size, self.sha256))
        if self.shapes is not None and self.shapes != {name: tuple(one.shape) for name, one in arrays.items()}:
            differ = sorted(set(self.shapes) ^ set(arrays)) or "shapes"
            raise ValueError(f"{self.path}: {self.name}: the manifest lists other arrays than the file has: {differ}")
        return arrays


def read_manifest(folder: Path) -> dict[str, Any]:
    """The folder's manifest; raises ValueError for a format this reader does not know."""
    manifest = json.loads((folder / "manifest.json").read_text())
    if manifest["format"] != 1:
        raise ValueError(f"{folder}/manifest.json: format {manifest['format']}, this reader knows 1")
    return manifest


def read_cases(folder: Path) -> list[GoldenCase]:
    """Every case of a folder, in the manifest's order."""
    return [
        GoldenCase(
            name=case["case"],
            config=case["config"],
            scalars=case["scalars"],
            path=folder / case["file"],
            size=case["bytes"],
            sha256=case["sha256"],
            shapes={name: tuple(shape) for name, shape, *_ in case["arrays"]} if "arrays" in case else None,
        )
        for case in read_manifest(folder)["cases"]
    ]


def read_table(folder: Path, file: str) -> list[dict[str, Any]]:
    """Rows of an integer table as dicts by column."""
    entry = next(table for table in read_manifest(folder)["tables"] if table["file"] == file)
    table = json.loads(whole_file(folder / file, entry["bytes"], entry["sha256"]))
    return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]


def whole_file(path: Path, size: int, sha256: str) -> bytes:
    """Contents of a file that has the recorded size and sha256; raises ValueError otherwise."""
    data = path.read_bytes()
    if len(data) != size or hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError(f"{path} is not the file its manifest describes")
    return data


def distance(ours: Tensor, reference: Tensor, *, least: float = 0.0) -> float:
    """max|ours - reference| / max(max|reference|, least); the plain maximum where both of these are 0."""
    ours, reference = ours.detach().double(), reference.double()
    assert ours.shape == reference.shape, f"{tuple(ours.shape)} for {tuple(reference.shape)}"
    difference = float((ours - reference).abs().max())
    scale = max(float(reference.abs().max()), least)
    return difference / scale if scale > 0 else difference
