"""Keyed noise: equal to a hash of plain integers, the same on every shard, and as random as dropout needs."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
import torch

from parallel.rng import Draws, NoiseKey, NoiseSites, keyed_dropout, keyed_uniform

WORD = 2**32


SITES = NoiseSites({"encoder.1": ("jitter", "dropout"), "encoder.2": ("jitter", "dropout")})


def key(rows: int | list[int] = 4, seed: int = 1, step: int = 0, part: str = "encoder.1") -> Draws:
    rows = list(range(rows)) if isinstance(rows, int) else rows
    return SITES.draws(NoiseKey(seed=seed, step=step, rows_B=torch.tensor(rows))).of(part)


def oracle(seed: int, step: int, row: int, site: str, coordinates: list[int]) -> float:
    """The same hash in Python integers."""

    def mix(x: int) -> int:
        x = (x ^ (x >> 16)) * 0x7FEB352D % WORD
        x = (x ^ (x >> 15)) * 0x846CA68B % WORD
        return x ^ (x >> 16)

    digest = hashlib.blake2b(site.encode(), digest_size=8).digest()
    chains = []
    for chain in (0x243F6A88, 0x85A308D3):
        for word in (seed % WORD, seed // WORD, step % WORD, step // WORD):
            chain = mix((chain + word * 0x9E3779B9) % WORD)
        for half in (digest[:4], digest[4:]):
            chain = mix((chain + int.from_bytes(half, "little") * 0x9E3779B9) % WORD)
        chain = mix((chain + row % WORD) % WORD)
        chain = mix((chain + row // WORD) % WORD)
        for coordinate in coordinates[:-1]:
            chain = mix((chain + coordinate * 0x9E3779B9) % WORD)
        chains.append(chain)
    last = mix((chains[0] + coordinates[-1] * 0x9E3779B9) % WORD)
    return (mix((last + chains[1]) % WORD) >> 8) / 2**24


def correlation(x: torch.Tensor, y: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1])


def test_equals_the_hash_in_plain_integers():
    rows = [0, 5, 2**31, 2**40 + 3]
    drawn = keyed_uniform(key(rows, seed=2**33 + 9, step=70_000), "jitter", [(2, 3), (7, 2)])
    for b, row in enumerate(rows):
        for i in range(3):
            for j in range(2):
                expected = oracle(2**33 + 9, 70_000, row, "encoder.1.jitter", [2 + i, 7 + j])
                assert drawn[b, i, j].item() == expected


def test_a_shard_draws_its_slice_of_the_whole():
    whole = keyed_uniform(key(8), "jitter", [(0, 6), (0, 10)])
    assert torch.equal(keyed_uniform(key([2, 3]), "jitter", [(0, 6), (0, 10)]), whole[2:4])
    assert torch.equal(keyed_uniform(key(8), "jitter", [(0, 6), (5, 5)]), whole[:, :, 5:])
    assert torch.equal(keyed_uniform(key(8), "jitter", [(4, 2), (3, 4)]), whole[:, 4:, 3:7])


def test_any_number_of_dims():
    assert keyed_uniform(key(3), "jitter", []).shape == (3,)
    assert keyed_uniform(key(3), "jitter", [(0, 2), (0, 3), (0, 4)]).shape == (3, 2, 3, 4)
    assert len(keyed_uniform(key(1000), "jitter", []).unique()) > 990


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((key(seed=1), "jitter"), (key(seed=2), "jitter")),
        ((key(step=1), "jitter"), (key(step=2), "jitter")),
        ((key(seed=1, step=2), "jitter"), (key(seed=2, step=1), "jitter")),
        ((key([0, 1, 2, 3]), "jitter"), (key([1, 2, 3, 4]), "jitter")),
        ((key(), "jitter"), (key(), "dropout")),
        ((key(), "jitter"), (key(part="encoder.2"), "jitter")),
    ],
    ids=["seed", "step", "swapped", "row", "jitter", "part"],
)
def test_other_keys_give_other_noise(one, other):
    x, y = (keyed_uniform(k, site, [(0, 64), (0, 128)]) for k, site in (one, other))
    assert abs(correlation(x, y)) < 4 / x.numel() ** 0.5
    assert (x == y).float().mean() < 1e-3


def test_a_site_that_nobody_listed_is_refused():
    with pytest.raises(AssertionError, match="no site 'other' among jitter, dropout"):
        keyed_uniform(key(), "other", [])


def test_moments_and_bins_are_uniform():
    x = keyed_uniform(key(16), "jitter", [(0, 64), (0, 256)])
    n = x.numel()
    assert x.dtype == torch.float32
    assert x.min() >= 0
    assert x.max() < 1
    assert abs(x.mean() - 1 / 2) < 4 * (1 / 12 / n) ** 0.5
    assert abs(x.var() - 1 / 12) < 4 * (1 / 180 / n) ** 0.5
    counts = torch.histc(x, bins=256, min=0, max=1)
    chi2 = ((counts - n / 256) ** 2 / (n / 256)).sum()
    assert 150 < chi2 < 370  # 255 degrees of freedom: mean 255, standard deviation 22.6


def test_every_bit_is_fair():
    words = (keyed_uniform(key(16), "jitter", [(0, 64), (0, 256)]) * 2**24).to(torch.int64)
    for bit in range(24):
        share = (words >> bit & 1).double().mean().item()
        assert abs(share - 0.5) < 5 * 0.5 / words.numel() ** 0.5


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("distance", [1, 2, 16])
def test_neighbours_are_not_correlated(dim, distance):
    x = keyed_uniform(key(32), "jitter", [(0, 64), (0, 128)])
    n = x.shape[dim]
    near, far = x.narrow(dim, 0, n - distance), x.narrow(dim, distance, n - distance)
    assert abs(correlation(near, far)) < 4 / near.numel() ** 0.5


def test_dropout_keeps_the_mean_the_dtype_and_the_mask_of_its_gradient():
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        x = torch.ones(16, 32, 64, dtype=dtype, requires_grad=True)
        y = keyed_dropout(x, 0.25, key(16), "jitter", [(0, 32), (0, 64)])
        assert y.dtype == dtype
        kept = y != 0
        assert abs(kept.double().mean().item() - 0.75) < 0.01
        assert torch.equal(y[kept], torch.full_like(y[kept], 1 / 0.75))
        y.sum().backward()
        assert torch.equal(x.grad != 0, kept)
        assert torch.equal(x.grad, y.detach())  # of ones: gradient and output are the same mask


def test_dropout_of_shards_is_the_shard_of_dropout():
    x = torch.randn(4, 8, 16, generator=torch.Generator().manual_seed(0))
    whole = keyed_dropout(x, 0.1, key(4), "jitter", [(0, 8), (0, 16)])
    for part in (0, 1):
        shard = keyed_dropout(x[:, :, part * 8 : part * 8 + 8], 0.1, key(4), "jitter", [(0, 8), (part * 8, 8)])
        assert torch.equal(shard, whole[:, :, part * 8 : part * 8 + 8])


def test_no_dropout_is_the_same_tensor():
    x = torch.ones(4, 3)
    assert keyed_dropout(x, 0.0, key(4), "jitter", [(0, 3)]) is x


def test_repeating_a_draw_repeats_it_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    k = key(4)
    rows = k.rows_B.clone()
    assert torch.equal(keyed_uniform(k, "jitter", [(0, 9)]), keyed_uniform(k, "jitter", [(0, 9)]))
    assert torch.equal(k.rows_B, rows)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("sizes", [(5, 24), (3, 17)], ids=str)
def test_compiled_draws_are_the_same_in_what_is_left_over_after_whole_vectors(sizes, dtype):
    """By torch's own compiler, which may let a product of int32 overflow where C++ leaves that undefined."""
    torch._dynamo.reset()
    draws = NoiseSites({"p": ("s",)}).draws(NoiseKey(seed=1, step=0, rows_B=torch.arange(4))).of("p")
    x = torch.randn(4, *sizes, dtype=dtype)
    ranges = [(0, size) for size in sizes]

    def drop(x: torch.Tensor, starts_2S: torch.Tensor, rows_B: torch.Tensor) -> torch.Tensor:
        return keyed_dropout(x, 0.1, replace(draws, starts_2S=starts_2S, rows_B=rows_B), "s", ranges)

    compiled = torch.compile(drop, dynamic=False)(x, draws.starts_2S, draws.rows_B)
    assert torch.equal(compiled, drop(x, draws.starts_2S, draws.rows_B))
