"""Fingerprints of every sublayer's output, by which a layout that differs is told where in the forward it begins.

A fingerprint is a few fixed random projections of what a row of the batch got: small enough to keep for every sublayer
of every step, and different as soon as any element is. Shape suffixes: B rows, P projections.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from measure.verify.observe.rows import Rows, rows_of_noise
from model.t5.model import SwitchTransformer
from model.t5.norm import RmsNorm
from model.t5.stack import Stack

PROJECTIONS = 4
_Function = TypeVar("_Function", bound=Callable[..., Any])
_SEED = 0x7EC0


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """What one call of one module gave for some rows of the global batch."""

    place: str  # the module's name and which call of the step's forward it was: "shared#1", "encoder.layers.0.ff#0"
    rows_B: Tensor
    prints_BP: Tensor  # on the CPU

    @property
    def name(self) -> str:
        """The module."""
        return self.place.partition("#")[0]


class Tracer:
    """Takes the fingerprints of a model's embeddings, norms, attentions, feed-forward and expert layers, in order."""

    def __init__(self, module: SwitchTransformer, rows: Rows = rows_of_noise) -> None:
        self._rows = rows
        self._rows_B: Tensor | None = None
        self._calls: Counter[str] = Counter()
        self._taken: list[Trace] = []
        module.register_forward_pre_hook(self._begin, with_kwargs=True)
        for name, child in traced_modules(module):
            child.register_forward_hook(self._note(name))

    def take(self) -> list[Trace]:
        """What was called since the last time, recomputed calls as well."""
        taken, self._taken = self._taken, []
        return taken

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._rows_B = self._rows(kwargs["noise"])
        self._calls.clear()

    def _note(self, name: str) -> Callable[..., None]:
        @untraced
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            x = output[0] if isinstance(output, tuple) else output
            assert self._rows_B is not None, "the model was not called with noise"
            place = f"{name}#{self._calls[name]}"
            self._calls[name] += 1
            self._taken.append(Trace(place=place, rows_B=self._rows_B.cpu(), prints_BP=fingerprint(x)))

        return hook


def untraced(function: _Function) -> _Function:
    """What watches compiled blocks is no part of their graphs, which end before it and begin again behind."""
    return cast("_Function", torch.compiler.disable(function))


def traced_modules(module: SwitchTransformer) -> Iterator[tuple[str, nn.Module]]:
    """Modules that give [B, L, D], by name: in model order, which is that of the first calls but for embeddings."""
    embeddings = (module.shared, module.encoder_embedding, module.decoder_embedding)
    for name, child in module.named_modules():
        if any(child is embedding for embedding in embeddings):
            yield name, child
        elif isinstance(child, Stack):
            yield from ((f"{name}.{at}", part) for at, part in child.named_modules() if _is_sublayer(at, part))


def _is_sublayer(name: str, part: nn.Module) -> bool:
    """Whether a module of a stack is a norm, or a direct child of a block."""
    return isinstance(part, RmsNorm) or (name.startswith("layers.") and name.count(".") == 2)


@torch.no_grad()
def fingerprint(x: Tensor) -> Tensor:
    """[B, ..] -> [B, P]: projections of what belongs to each row."""
    wide = torch.promote_types(x.dtype, torch.float32)
    flat = x.detach().reshape(len(x), -1).to(wide)
    return (flat @ _directions(flat.shape[1], wide, x.device)).cpu()


@lru_cache(maxsize=8)
def _directions(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(_SEED)
    return torch.randn(size, PROJECTIONS, generator=generator, dtype=torch.float64).to(device, dtype)
