"""Mixed precision through the engine: what is fp32 stays fp32, and sums over micro-batches and ranks are fp32."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from parallel.engine import deepspeed as engine_deepspeed
from parallel.engine.protocol import MASTER
from parallel.layers.sharding import replica_axis
from parallel.mesh import collectives
from parallel.mesh.groups import init_groups
from tests.harness import run_ranks
from tests.parallel.engine.engine_toy import SPECS, Toy, batch, logical_weights, oracle, run_config, run_micro_batches

LR = 0.05


def fp32_sums(toy: Toy, mesh, accumulation: int) -> dict[str, torch.Tensor]:
    """Gradients of this rank's micro-batches, each rounded by nothing but its own backward; averaged in fp32."""
    sums = {name: torch.zeros(p.shape) for name, p in toy.named_parameters()}
    for i in range(accumulation):
        (toy(*batch(0, mesh.dp.rank * accumulation + i)) / accumulation).backward()
        for name, p in toy.named_parameters():
            sums[name] += p.grad.float()
            p.grad = None
    for name, p in toy.named_parameters():
        collectives.all_reduce(sums[name], replica_axis(p, mesh)).div_(mesh.dp.size)
    return sums


def rounded_to_bf16(tensor: torch.Tensor) -> bool:
    return torch.equal(tensor, tensor.bfloat16().float())


def mixed(rank: int, world: int, cases: list[dict[str, Any]], bucket: int) -> list[float]:
    engine_deepspeed.BUCKET_ELEMENTS = bucket  # this process only
    norms = []
    for options in cases:
        cfg = run_config(precision="bf16", **options)
        mesh = init_groups(cfg.parallel)
        wanted = fp32_sums(Toy(mesh, torch.bfloat16, logical_weights()), mesh, cfg.train.accumulation)
        toy = Toy(mesh, torch.bfloat16, logical_weights())
        engine = engine_deepspeed.build_engine(toy, cfg, mesh)
        run_micro_batches(engine, mesh, cfg, 0)
        for name, grad in engine.gradients().items():
            error = (grad - wanted[name]).abs().max() / wanted[name].abs().max()
            assert error < 1e-6, f"{options}: gradient of {name} off by {error:.1e} of its maximum"
            assert not rounded_to_bf16(grad), f"{options}: gradient of {name} was rounded"
        norms.append(engine.step(LR).grad_norm)
        for name, p in toy.named_parameters():
            assert p.dtype == (torch.float32 if SPECS[name].keep_fp32 else torch.bfloat16), name
        for state in engine.read_state():
            if state.kind == MASTER:
                assert state.value.dtype == torch.float32
                assert not rounded_to_bf16(state.value), f"{options}: master of {state.name} was rounded"
                compute = dict(toy.named_parameters())[state.name]
                assert torch.equal(compute, state.value.to(compute.dtype)), f"{options}: {state.name}"
    return norms


@pytest.mark.parametrize("bucket", [2**20, 16], ids=["one bucket", "every tensor above the bucket"])
def test_sums_are_fp32_and_router_and_norm_stay_fp32(bucket):
    cases = [{"zero": zero, "ep": 2, "accumulation": 4} for zero in (0, 1, 2)]
    found = run_ranks(mixed, 2, cases, bucket)
    exact = oracle(run_config(zero=0, accumulation=4), 1, LR, shards=2)[0].norm
    for norms in found:
        assert norms == pytest.approx([norms[0]] * len(cases), rel=1e-6), "stages report different norms"
        assert norms == pytest.approx([exact] * len(cases), rel=5e-3), "bf16 activations change it, by less than this"
    assert found[0] == found[1]


def test_tensor_parallel_mixed_precision():
    cases = [{"zero": zero, "tp": 2, "ep": 2, "etp": etp, "accumulation": 2} for zero in (0, 1, 2) for etp in (1, 2)]
    found = run_ranks(mixed, 4, cases, 2**20)
    exact = oracle(run_config(zero=0, accumulation=2), 1, LR, shards=2)[0].norm
    for norms in found:
        assert norms == pytest.approx([exact] * len(cases), rel=1e-2)
        assert norms == found[0]
