"""Tensor-parallel layers against the plain factory with the same full weights: results, gradients, names, marks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from parallel.layers.plain import LayerFactory, PlainLayers
from parallel.layers.sharding import ParamSpec, cast_module, shard_of, spec_of
from parallel.layers.tensor import TensorParallelLayers
from parallel.mesh.axes import Mesh
from parallel.mesh.groups import init_groups
from tests.harness import run_ranks
from tests.settings import parallel_config

ROWS, REAL_ROWS, D, FF, B, L = 32, 17, 8, 16, 3, 5
VOCAB = ParamSpec(dims=("vocab", "embed"))
UP = ParamSpec(dims=("ff", "embed"))
DOWN = ParamSpec(dims=("embed", "ff"))


class Toy(nn.Module):
    """Embedding, a feed-forward layer, tied logits with masked padding columns, cross-entropy."""

    def __init__(self, layers: LayerFactory) -> None:
        super().__init__()
        self.layers = layers
        self.embedding = layers.embedding(ROWS, D, VOCAB)
        self.up = layers.column_linear(D, FF, UP)
        self.down = layers.row_linear(FF, D, DOWN)
        self.head = layers.column_linear(D, ROWS, VOCAB)

    def mask(self, logits_BLV: Tensor) -> Tensor:
        columns = logits_BLV.shape[-1]
        real = torch.arange(columns) + columns * self.layers.tp_rank < REAL_ROWS
        return logits_BLV.masked_fill(~real, float("-inf"))

    def logits(self, ids_BL: Tensor) -> tuple[Tensor, Tensor]:
        x_BLD = self.embedding(ids_BL)
        x_BLD = x_BLD + self.down(torch.relu(self.up(x_BLD)))
        return self.mask(self.layers.tied_logits(x_BLD, self.embedding.weight)), self.mask(self.head(x_BLD))

    def forward(self, ids_BL: Tensor, targets_BL: Tensor) -> Tensor:
        tied, untied = self.logits(ids_BL)
        return self.layers.cross_entropy(tied, targets_BL) + 2 * self.layers.cross_entropy(untied, targets_BL)


def build(layers: LayerFactory, mesh: Mesh | None, dtype: torch.dtype) -> Toy:
    """Built on meta, cast, given memory, filled with this rank's slices of the same logical weights."""
    with torch.device("meta"):
        module = Toy(layers)
    cast_module(module, dtype)
    for i, (name, old) in enumerate(list(module.named_parameters())):
        spec = spec_of(old)
        shape, part = tuple(old.shape), ...
        if mesh is not None:
            shard = shard_of(old, mesh)
            shape, part = shard.global_shape, shard.slices
        full = torch.randn(shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64) * 0.5
        new = nn.Parameter(full[part].to(dtype).clone())
        vars(new).update(vars(old))
        assert spec_of(new) is spec
        owner, leaf = name.rsplit(".", 1)
        module.get_submodule(owner)._parameters[leaf] = new
    return module


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(99)
    return tuple(torch.randint(0, REAL_ROWS, (B, L), generator=generator) for _ in range(2))


def groups_of(tp: int) -> Mesh:
    return init_groups(parallel_config(tp))


def compare(rank: int, world: int, dtype: torch.dtype, tolerance: float) -> None:
    mesh = groups_of(world)
    ids, targets = batch()
    weights = torch.linspace(0.5, 2, B * L).view(B, L).to(dtype)
    plain = build(PlainLayers(), None, dtype)
    cut = build(TensorParallelLayers(mesh), mesh, dtype)
    expected, loss = plain(ids, targets), cut(ids, targets)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert loss.isfinite().all()
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=tolerance)
    (expected * weights).sum().backward()
    (loss * weights).sum().backward()
    references = dict(plain.named_parameters())
    assert references.keys() == dict(cut.named_parameters()).keys()
    for name, parameter in cut.named_parameters():
        whole = references[name].grad
        part = whole[shard_of(parameter, mesh).slices]
        assert parameter.grad.dtype == dtype
        assert parameter.grad.isfinite().all()
        assert (parameter.grad - part).abs().max() <= tolerance * whole.abs().max(), name


def logits_everywhere(rank: int, world: int) -> None:
    mesh = groups_of(world)
    ids, targets = batch()
    plain = build(PlainLayers(), None, torch.float32)
    cut = build(TensorParallelLayers(mesh), mesh, torch.float32)
    logits, _ = cut.logits(ids)
    before = logits.detach().clone()
    torch.testing.assert_close(cut.layers.gather_logits(logits), plain.logits(ids)[0])
    cut.layers.cross_entropy(logits, targets)
    assert torch.equal(logits, before)  # not overwritten by Megatron-Core's in-place arithmetic
    with torch.no_grad():
        torch.testing.assert_close(cut(ids, targets), plain(ids, targets))


def names_and_marks(rank: int, world: int) -> dict[str, tuple]:
    mesh = groups_of(world)
    with torch.device("meta"):
        cut = Toy(TensorParallelLayers(mesh))
        plain = Toy(PlainLayers())
    assert list(cut.state_dict()) == list(plain.state_dict())
    assert all(p.is_meta for p in cut.parameters())
    built = build(TensorParallelLayers(mesh), mesh, torch.float32)
    built.load_state_dict(built.state_dict())  # strict: no name of Megatron-Core's own is expected or left over
    return {
        name: (p.tensor_model_parallel, p.partition_dim, p.partition_stride, tuple(p.shape))
        for name, p in cut.named_parameters()
    }


@pytest.mark.parametrize(
    ("world", "dtype", "tolerance"),
    [
        (2, torch.float64, 1e-12),
        (2, torch.float32, 1e-6),
        (2, torch.bfloat16, 2e-2),
        (4, torch.float64, 1e-12),  # at tp 4 the last rank's columns are all padding
        (4, torch.float32, 1e-6),
    ],
    ids=["tp2-fp64", "tp2-fp32", "tp2-bf16", "tp4-fp64", "tp4-fp32"],
)
def test_equals_the_plain_layers(world, dtype, tolerance):
    run_ranks(compare, world, dtype, tolerance)


def test_logits_are_gathered_and_not_overwritten():
    run_ranks(logits_everywhere, 2)


def test_names_are_the_plain_ones_and_shards_are_marked_for_the_norm():
    for marks in run_ranks(names_and_marks, 2):
        assert marks == {
            "embedding.weight": (True, 0, 1, (ROWS // 2, D)),
            "up.weight": (True, 0, 1, (FF // 2, D)),
            "down.weight": (True, 1, 1, (D, FF // 2)),
            "head.weight": (True, 0, 1, (ROWS // 2, D)),
        }
