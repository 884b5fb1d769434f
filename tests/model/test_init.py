from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import nn

from conf.routing.settings import init_rules
from conf.schema import SemanticsName
from model.init import InitKey, draw, initialise, tensor_seed
from parallel.layers.sharding import ParamSpec, tag
from parallel.mesh.axes import Axis, Mesh, single_process
from tests.model.t5.build import MODEL, MOE, make_model

D, FF, EXPERTS, VOCAB = 16, 12, 4, 128


def axis(name: str, size: int, rank: int) -> Axis:
    return Axis(name=name, size=size, rank=rank, ranks=tuple(range(size)), group=None)


def groups(*, tp: tuple[int, int] = (1, 0), ep: tuple[int, int] = (1, 0), etp: tuple[int, int] = (1, 0)):
    """Groups by hand, (size, rank) per axis: the initialiser reads nothing else."""
    one = {name: axis(name, 1, 0) for name in ("world", "dp", "edp", "control")}
    return Mesh(tp=axis("tp", *tp), ep=axis("ep", *ep), etp=axis("etp", *etp), **one)


def key_of(seed: int, scale: float = 0.1, semantics: SemanticsName = "mesh_tf") -> InitKey:
    return InitKey(seed=seed, scale=scale, rules=init_rules(replace(MOE, semantics=semantics)))


class Toy(nn.Module):
    """One parameter of each kind, with the local shapes of a layout."""

    def __init__(self, tp: int = 1, ep: int = 1, etp: int = 1) -> None:
        super().__init__()

        def parameter(spec: ParamSpec, *shape: int) -> nn.Parameter:
            return tag(nn.Parameter(torch.full(shape, math.nan)), spec)

        self.shared = parameter(ParamSpec(dims=("vocab", "embed"), init="embedding"), VOCAB // tp, D)
        self.wo = parameter(ParamSpec(dims=("embed", "ff"), fan_in=FF), D, FF // tp)
        self.bias = parameter(ParamSpec(dims=("buckets", "heads"), fan_in=D), 8, 4 // tp)
        self.norm = parameter(ParamSpec(dims=("embed",), init="ones"), D)
        spec = ParamSpec(dims=("experts", "embed", "expert_ff"), fan_in=D)
        self.experts = parameter(spec, EXPERTS // ep, D, FF // etp)


@pytest.mark.parametrize(("tp", "ep", "etp"), [(2, 1, 2), (1, 2, 1), (2, 2, 1), (2, 2, 2), (1, 4, 1)])
def test_every_layout_gets_slices_of_the_same_weights(tp: int, ep: int, etp: int) -> None:
    whole = Toy()
    initialise(whole, single_process(), key_of(5))
    for t, e, x in product(range(tp), range(ep), range(etp)):
        part = Toy(tp, ep, etp)
        initialise(part, groups(tp=(tp, t), ep=(ep, e), etp=(etp, x)), key_of(5))
        assert torch.equal(part.shared, whole.shared.chunk(tp, 0)[t])
        assert torch.equal(part.wo, whole.wo.chunk(tp, 1)[t])
        assert torch.equal(part.bias, whole.bias.chunk(tp, 1)[t])
        assert torch.equal(part.norm, torch.ones(D))
        assert torch.equal(part.experts, whole.experts.chunk(ep, 0)[e].chunk(etp, 2)[x])


def test_weights_depend_on_seed_name_and_expert() -> None:
    toy, again, other = Toy(), Toy(), Toy()
    for module, seed in ((toy, 1), (again, 1), (other, 2)):
        initialise(module, single_process(), key_of(seed))
    assert torch.equal(toy.wo, again.wo)
    assert not torch.equal(toy.wo, other.wo)
    assert not torch.equal(toy.experts[0], toy.experts[1])
    seeds = {tensor_seed(s, n, e) for s, n, e in product((0, 1), ("a", "b"), (None, 0, 1))}
    assert len(seeds) == 12
    assert all(0 <= seed < 2**63 for seed in seeds)


def drawn(spec: ParamSpec, *shape: int, semantics: SemanticsName = "mesh_tf", scale: float = 0.1) -> torch.Tensor:
    return draw(spec, shape, name="w", expert=None, key=key_of(1, scale, semantics))


LINEAR = ParamSpec(dims=("embed", "ff"), fan_in=64)
ROUTER = ParamSpec(dims=("embed", "router_experts"), fan_in=64)
WI = ParamSpec(dims=("experts", "embed", "expert_ff"), fan_in=64)
WO = ParamSpec(dims=("experts", "expert_ff", "embed"), fan_in=200)  # of one expert: [200, 300], so d_model is 300
HEAD = ParamSpec(dims=("vocab", "embed"), fan_in=64)
EMBEDDING = ParamSpec(dims=("vocab", "embed"), init="embedding")
SPREADS = [  # semantics, parameter, stddev, largest multiple of it (None: no truncation)
    ("mesh_tf", LINEAR, 0.8796 * math.sqrt(0.1 / 64), 2 / 0.8796),
    ("mesh_tf", ROUTER, 0.8796 * math.sqrt(0.1 / 64), 2 / 0.8796),
    ("mesh_tf", WO, 0.8796 * math.sqrt(0.1 / 200), 2 / 0.8796),
    ("flaxformer", LINEAR, math.sqrt(0.1 / 64), 2 / 0.8796),
    ("flaxformer", ROUTER, 0.02, None),
    ("flaxformer", WI, math.sqrt(0.1 / 64), None),
    ("flaxformer", WO, math.sqrt(0.1 / 200), None),
    ("flaxformer", EMBEDDING, 1.0, None),
    ("hf", LINEAR, math.sqrt(0.1 / 64), None),
    ("hf", ROUTER, math.sqrt(0.1), None),
    ("hf", WI, math.sqrt(0.1 / 64), None),
    ("hf", WO, math.sqrt(0.1 / 300), None),
    ("hf", HEAD, math.sqrt(0.1), None),
    ("hf", EMBEDDING, math.sqrt(0.1), None),
    ("paper", HEAD, 0.8796 * math.sqrt(0.1 / 64), 2 / 0.8796),
]


@pytest.mark.parametrize(("semantics", "spec", "std", "limit"), SPREADS)
def test_spread_and_truncation_by_semantics(
    semantics: SemanticsName, spec: ParamSpec, std: float, limit: float | None
) -> None:
    values = drawn(spec, 200, 300, semantics=semantics)
    assert values.std().item() == pytest.approx(std, rel=0.02)
    widest = values.abs().max().item() / std
    assert widest > 3.5 if limit is None else 0.99 * limit < widest < 1.001 * limit


def test_norms_start_at_one_and_in_hugging_face_at_its_factor() -> None:
    norm = ParamSpec(dims=("embed",), init="ones")
    assert (drawn(norm, 8, semantics="flaxformer") == 1).all()
    assert drawn(norm, 8, semantics="hf", scale=0.25).tolist() == [0.5] * 8


def test_truncated_normal_without_variance_correction() -> None:
    std = math.sqrt(0.1 / 64)
    values = drawn(ParamSpec(dims=("embed", "ff"), fan_in=64), 400, 500)
    assert values.abs().max() <= 2 * std
    assert values.abs().max() > 1.99 * std
    assert values.mean().abs() < 5 * std / math.sqrt(values.numel())
    assert values.std().item() == pytest.approx(0.8796 * std, rel=0.01)


def test_spread_of_each_kind_of_parameter() -> None:
    heads, d_kv, d_ff = 16, 8, 512
    module = make_model(
        d_model=256, d_ff=d_ff, d_kv=d_kv, num_heads=heads, relative_buckets=32, tie_embeddings=False,
        init_scale=0.1, dtype=torch.float32,
    )  # fmt: skip
    layer, expected = module.decoder.layers[0], lambda fan_in: 0.8796 * math.sqrt(0.1 / fan_in)
    for attention in (layer.self_attention, layer.cross_attention):
        assert attention.q.weight.std().item() == pytest.approx(expected(256 * d_kv), rel=0.03)
        assert attention.k.weight.std().item() == pytest.approx(expected(256), rel=0.03)
        assert attention.v.weight.std().item() == pytest.approx(expected(256), rel=0.03)
        assert attention.o.weight.std().item() == pytest.approx(expected(heads * d_kv), rel=0.03)
    assert layer.ff.wi.weight.std().item() == pytest.approx(expected(256), rel=0.03)
    assert layer.ff.wo.weight.std().item() == pytest.approx(expected(d_ff), rel=0.03)
    assert module.shared.weight.std().item() == pytest.approx(1.0, rel=0.03)
    assert module.lm_head.weight.std().item() == pytest.approx(expected(256), rel=0.03)
    assert module.decoder.relative_bias.weight.std().item() == pytest.approx(expected(256), rel=0.15)
    assert (layer.ff_norm.weight == 1).all()
    assert MODEL.vocab_size < len(module.shared.weight)
    assert module.shared.weight[MODEL.vocab_size :].abs().sum() > 0  # padding rows are drawn like the others
