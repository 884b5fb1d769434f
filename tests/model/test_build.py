from __future__ import annotations

import torch
from torch import nn

from model.build import build_model, materialise, meta_model
from parallel.layers.sharding import ParamSpec, spec_of, tag, tagged_parameters
from parallel.mesh.axes import single_process
from tests.model.t5.build import make_batch, run_config


def test_meta_model_needs_no_memory() -> None:
    module = meta_model(run_config(d_model=2048, d_ff=8192, tie_embeddings=False), single_process())
    assert all(p.is_meta for p in module.parameters())
    assert sum(p.numel() for p in module.parameters()) > 10**8


def test_built_model_has_tags_dtypes_and_runs() -> None:
    module = build_model(run_config(tie_embeddings=False), single_process(), device="cpu", dtype=torch.bfloat16)
    for name, parameter, spec in tagged_parameters(module):
        assert parameter.dtype == (torch.float32 if spec.keep_fp32 else torch.bfloat16), name
    batch = make_batch()
    output = module(batch.encoder_BL, batch.targets_BT, mode="train", noise=None)
    output.token_loss_BT.sum().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_weights_are_a_function_of_the_seed() -> None:
    cfg = run_config()
    one, other = (build_model(cfg, single_process(), device="cpu", dtype=torch.float32) for _ in range(2))
    for (name, a), b in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_materialise_keeps_tags_attributes_and_ties() -> None:
    with torch.device("meta"):
        module = nn.ModuleList([nn.Linear(2, 3, bias=False), nn.Linear(2, 3, bias=False)])
    spec = ParamSpec(dims=("ff", "embed"), fan_in=2)
    module[1].weight = module[0].weight
    tag(module[0].weight, spec).tensor_model_parallel = True
    materialise(module, "cpu")
    assert module[0].weight is module[1].weight
    assert module[0].weight.device.type == "cpu"
    assert spec_of(module[0].weight) == spec
    assert module[0].weight.tensor_model_parallel is True
