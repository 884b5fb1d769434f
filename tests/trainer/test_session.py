"""What a run starts from: masters in mixed precision."""

import torch

from conf.compose import compose
from model.build import build_model
from parallel.engine.protocol import MASTER
from parallel.mesh.groups import init_groups
from tests.harness import run_ranks
from tests.trainer.test_layouts import TINY
from trainer.session import build_initialised


def _masters_on_rank(rank: int, world: int, stages: list[int]) -> list[dict[str, bool]]:
    """Per stage: name of each master this rank owns -> whether it equals the fp32 weight, every bit."""
    found = []
    for stage in stages:
        cfg = compose([*TINY, "train.precision=bf16", f"parallel.zero={stage}", "parallel.ep=2", "launch.nproc=2"])
        mesh = init_groups(cfg.parallel)
        engine = build_initialised(cfg, mesh, torch.device("cpu"))
        exact = dict(build_model(cfg, mesh, device="cpu", dtype=torch.float32).named_parameters())
        states = [(state.name, state.kind, state.value.clone()) for state in engine.read_state()]
        assert {kind for _, kind, _ in states} == {MASTER}, "moments exist before the first step"
        for name, parameter in engine.module.named_parameters():
            assert torch.equal(parameter, exact[name].to(parameter.dtype)), name
        assert any(not torch.equal(value, value.bfloat16().float()) for _, _, value in states), "nothing to be rounded"
        found.append({name: torch.equal(value, exact[name]) for name, _, value in states})
    return found


def test_bf16_masters_start_from_unrounded_weights():
    ranks = run_ranks(_masters_on_rank, 2, [0, 1, 2], timeout_s=60, deadline_s=240)
    names = {f"{stack}.layers.1.ff.experts.wi" for stack in ("encoder", "decoder")} | {"shared.weight"}
    for stage in (0, 1, 2):
        masters = ranks[0][stage] | ranks[1][stage]
        assert names <= set(masters)
        assert all(ranks[0][stage].values()), f"stage {stage}, rank 0"
        assert all(ranks[1][stage].values()), f"stage {stage}, rank 1"
