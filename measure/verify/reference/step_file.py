"""The files of one step of the reference: whole logical tensors by kind and name, read piece by piece, and numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from measure.verify.observe.numbers import StepNumbers
from measure.verify.observe.trace import Trace

GRADIENT, PARAMETER, SLOTS, TOKENS, LOGITS = "gradient", "parameter", "slots", "tokens", "logits"
OUTPUT = "output"
INITIAL = -1  # the "step" of the weights before the first one


def write_step(
    folder: Path,
    step: int,
    tensors: dict[str, Tensor],
    numbers: StepNumbers,
    norm: float,
    traces: Sequence[Trace] = (),
) -> None:
    """Write one step. Gradient, parameter and moment tensors are whole logical tensors by `kind/name`."""
    tensors = tensors | {f"{OUTPUT}/{trace.place}": trace.prints_BP for trace in traces}
    save_file({key: value.contiguous().cpu() for key, value in tensors.items()}, folder / f"step{step}.safetensors")
    largest = {key: float(value.abs().max()) for key, value in tensors.items() if value.is_floating_point()}
    places = [trace.place for trace in traces]
    squares = {
        key.partition("/")[2]: float(value.double().square().sum())
        for key, value in tensors.items() if key.startswith(f"{GRADIENT}/")
    }  # fmt: skip
    written = {
        "numbers": numbers.to_json(), "norm": norm, "largest": largest, "places": places, "squares": squares,
    }  # fmt: skip
    (folder / f"step{step}.json").write_text(json.dumps(written), encoding="utf-8")


class ReferenceStep:
    """One step of the reference, read piece by piece."""

    def __init__(self, folder: Path, step: int) -> None:
        written = json.loads((folder / f"step{step}.json").read_text(encoding="utf-8"))
        self.numbers = StepNumbers.from_json(written["numbers"])
        self.norm = float(written["norm"])
        self.squares: dict[str, float] = written["squares"]  # of gradients, summed over each parameter
        self.places: list[str] = written["places"]  # of outputs, in the order in which forward made them
        self._largest: dict[str, float] = written["largest"]
        self._file: Any = safe_open(folder / f"step{step}.safetensors", framework="pt")
        self._keys = list(self._file.keys())

    def names(self, kind: str) -> list[str]:
        """Names of the tensors of a kind."""
        return [key.partition("/")[2] for key in self._keys if key.partition("/")[0] == kind]

    def largest(self, kind: str, name: str) -> float:
        """max|b| of the whole tensor."""
        return self._largest[f"{kind}/{name}"]

    def shape(self, kind: str, name: str) -> tuple[int, ...]:
        """Shape of the whole tensor."""
        return tuple(self._file.get_slice(f"{kind}/{name}").get_shape())

    def part(self, kind: str, name: str, slices: tuple[slice, ...]) -> Tensor:
        """A rectangle of it."""
        return self._file.get_slice(f"{kind}/{name}")[slices]

    def whole(self, kind: str, name: str) -> Tensor:
        """All of it."""
        return self._file.get_tensor(f"{kind}/{name}")
