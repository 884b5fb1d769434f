"""Noise as a keyed hash of logical coordinates (ADR 003): the same numbers at every layout, and no state to save.

A `NoiseKey` says what all noise of a micro-batch depends on. A model lists the places where it draws, its sites, once
(`NoiseSites`); `draws` turns a key into one small tensor for all of them, so that a compiled step sees neither names
nor the number of the step.

Shape suffixes: B rows of a micro-batch, S sites. The mixer is `lowbias32` of the hash prospector project
(xor-shift-multiply, constants 0x7feb352d and 0x846ca68b), evaluated in place on wrapping int32, six times as fast as on
masked int64.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0x7FEB352D, 0x846CA68B)
_GOLDEN = 0x9E3779B9  # odd; spreads neighbouring coordinates over the word before they are mixed
_CHAIN_STARTS = (0x243F6A88, 0x85A308D3)  # digits of pi; two 32-bit chains together make a 64-bit key

Range = tuple[int, int]  # (start, size) along one dim, in coordinates of the logical (unsharded) tensor


@dataclass(frozen=True, kw_only=True)
class NoiseKey:
    """What a draw depends on besides its site and coordinates."""

    seed: int
    step: int
    rows_B: Tensor  # int64: rows of the step's global batch that this micro-batch holds, on the device of the draw


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The noise of one part of a model, for a micro-batch."""

    starts_2S: Tensor  # int32: both chains of every site after seed, step and name
    columns: Mapping[str, int]  # of `starts_2S`, by the site's name within the part
    rows_B: Tensor

    def start(self, site: str) -> tuple[Tensor, Tensor]:
        """Both chains of a site."""
        assert site in self.columns, f"no site {site!r} among {', '.join(self.columns)}: list it where the part does"
        column = self.columns[site]
        return self.starts_2S[0, column], self.starts_2S[1, column]


@dataclass(frozen=True, kw_only=True)
class ModelDraws:
    """The noise of a whole model, for a micro-batch."""

    sites: NoiseSites
    starts_2S: Tensor
    rows_B: Tensor

    def of(self, part: str) -> Draws:
        """The noise of one part; parts of a kind differ in numbers alone, so that they share a compiled graph."""
        first, columns = self.sites.parts[part]
        starts_2S = self.starts_2S[:, first : first + len(columns)]
        return Draws(starts_2S=starts_2S, columns=columns, rows_B=self.rows_B)


class NoiseSites:
    """The places of a model that draw noise, by part ("encoder.3") and name within it ("self_attention.weights")."""

    def __init__(self, parts: Mapping[str, Sequence[str]]) -> None:
        self.parts: dict[str, tuple[int, dict[str, int]]] = {}
        words: list[tuple[int, int]] = []
        for part, names in parts.items():
            self.parts[part] = (len(words), {name: column for column, name in enumerate(names)})
            words += [_site_words(f"{part}.{name}") for name in names]
        # On the CPU also where the model is being built on the meta device.
        self._words_2S = _int32(torch.tensor(words, dtype=torch.int64, device="cpu").view(-1, 2).T)

    def draws(self, key: NoiseKey) -> ModelDraws:
        """The noise of a key: the numbers of a site depend on its full name, "encoder.3.ff.hidden", alone."""
        words = (key.seed & _WORD, key.seed >> 32 & _WORD, key.step & _WORD, key.step >> 32 & _WORD)
        starts_21 = torch.tensor([[_chain(start, words)] for start in _CHAIN_STARTS], dtype=torch.int32, device="cpu")
        for word_S in self._words_2S:
            starts_21 = _mix(starts_21 + word_S * _signed(_GOLDEN))
        starts_2S = starts_21.to(key.rows_B.device, non_blocking=True)
        return ModelDraws(sites=self, starts_2S=starts_2S, rows_B=key.rows_B)


def keyed_uniform(draws: Draws, site: str, ranges: Sequence[Range]) -> Tensor:
    """Uniforms in [0, 1) with 24 random bits, fp32 [B, *sizes].

    Element (b, i, j, ..) is a function of (seed, step, row of b, site, start + i, start + j, ..) alone.
    """
    bits = _bits(draws, site, ranges)
    scratch = torch.empty_like(bits)
    return _shift_right(bits, 8, scratch).to(torch.float32).mul_(2.0**-24)


def keyed_dropout(x: Tensor, p: float, draws: Draws, site: str, ranges: Sequence[Range]) -> Tensor:
    """`x` [B, *sizes] with a share `p` of elements set to 0 and the rest divided by 1 - p; `x` itself when p is 0."""
    assert 0 <= p < 1, p
    if p == 0:
        return x
    sizes = tuple(size for _, size in ranges)
    assert tuple(x.shape) == (draws.rows_B.shape[0], *sizes), f"x is {tuple(x.shape)}, the ranges say B x {sizes}"
    keep = _bits(draws, site, ranges) >= round(p * 2**32) - 2**31  # signed words: the lowest share p is dropped
    # Multiplying by a Python number rounds a bf16 product once; 1 / (1 - p) held in bf16 would bias every element.
    return torch.where(keep, x, 0) * (1 / (1 - p))


def _bits(draws: Draws, site: str, ranges: Sequence[Range]) -> Tensor:
    """32 random bits per element, int32 [B, *sizes].

    Two chains absorb (seed, step, site), the row and then every coordinate but the last, on tensors that gain one dim
    at a time; only the last coordinate's two mixes run at full size: mix(mix(coordinate + chain 0) + chain 1).
    """
    low_B, high_B = _words(draws.rows_B)
    chains = [_mix(low_B + start) for start in draws.start(site)]
    chains = [_mix(chain + high_B) for chain in chains]
    for first, size in ranges[:-1]:
        coordinates = _coordinates(first, size, draws.rows_B.device)
        chains = [_mix(coordinates + chain.unsqueeze(-1)) for chain in chains]
    if not ranges:
        return _mix(chains[0] + chains[1])
    first, size = ranges[-1]
    bits = _mix(_coordinates(first, size, draws.rows_B.device) + chains[0].unsqueeze(-1))
    return _mix(bits.add_(chains[1].unsqueeze(-1)))


def _chain(start: int, words: Sequence[int]) -> int:
    """A chain after some words, as a signed 32-bit number. Plain integers: no work on the device."""
    for word in words:
        start = _mix_int((start + word * _GOLDEN) & _WORD)
    return _signed(start)


def _site_words(site: str) -> tuple[int, int]:
    digest = hashlib.blake2b(site.encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def _mix_int(x: int) -> int:
    x = ((x ^ x >> 16) * _MULTIPLIERS[0]) & _WORD
    x = ((x ^ x >> 15) * _MULTIPLIERS[1]) & _WORD
    return x ^ x >> 16


def _mix(x: Tensor) -> Tensor:
    """`_mix_int` of every element of an int32 tensor, in place."""
    scratch = torch.empty_like(x)
    x.bitwise_xor_(_shift_right(x, 16, scratch)).mul_(_signed(_MULTIPLIERS[0]))
    x.bitwise_xor_(_shift_right(x, 15, scratch)).mul_(_signed(_MULTIPLIERS[1]))
    return x.bitwise_xor_(_shift_right(x, 16, scratch))


def _shift_right(x: Tensor, places: int, out: Tensor) -> Tensor:
    """Logical shift of int32 words into `out`: torch shifts arithmetically, so the copied sign bits are masked off."""
    torch.bitwise_right_shift(x, places, out=out)
    return out.bitwise_and_((1 << (32 - places)) - 1)


def _words(x: Tensor) -> tuple[Tensor, Tensor]:
    """Low and high 32 bits of int64 values, as int32."""
    return _int32(x), (x >> 32).to(torch.int32)


def _int32(x: Tensor) -> Tensor:
    """The low 32 bits of int64 values."""
    # Into the signed range first: a cast out of range is undefined.
    return (((x & _WORD) ^ 0x80000000) - 0x80000000).to(torch.int32)


def _coordinates(first: int, size: int, device: torch.device) -> Tensor:
    # inductor takes arithmetic on an arange for that of unbounded numbers, and the product overflows where C++ leaves
    # that undefined. The xor, which changes nothing, makes int32 values of them first, whose products wrap.
    return torch.arange(first, first + size, dtype=torch.int32, device=device).bitwise_xor_(0).mul_(_signed(_GOLDEN))


def _signed(word: int) -> int:
    return word - (1 << 32) if word >> 31 else word
