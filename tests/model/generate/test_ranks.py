"""Generation on several ranks gives what one process gives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from model.build import build_model
from model.generate import GenerateOptions, GenerateResult, generate
from parallel.mesh.axes import Mesh, single_process
from parallel.mesh.collectives import all_reduce
from parallel.mesh.groups import init_groups
from tests.harness import run_ranks
from tests.model.t5.build import MOE, make_batch, run_config
from tests.settings import parallel_config

PROMPTS = make_batch(rows=6, vocab=6).encoder_BL


def config() -> Any:
    cfg = run_config(moe="switch", experts=replace(MOE, group_sequences=3), vocab_size=6, tie_embeddings=False)
    cfg.seed = 9
    return cfg


def decode(mesh: Mesh, options: GenerateOptions) -> GenerateResult:
    """Each data-parallel rank decodes its share of the prompts; all stop together."""
    module = build_model(config(), mesh, device="cpu", dtype=torch.float64)

    def all_finished(done: bool) -> bool:
        return bool(all_reduce(torch.tensor(int(done)), mesh.world, "min"))

    share = PROMPTS.chunk(mesh.dp.size)[mesh.dp.rank]
    return generate(module, share, options=options, all_finished=all_finished)


def on_rank(rank: int, world: int, tp: int, ep: int, etp: int, modes: list[GenerateOptions]) -> list[Any]:
    mesh = init_groups(parallel_config(tp, ep, etp))
    return [(mesh.dp.rank, mesh.dp.size, decode(mesh, options)) for options in modes]


@pytest.mark.parametrize(("tp", "ep", "etp"), [(2, 1, 2), (2, 2, 1), (1, 2, 1)])
def test_ranks_generate_as_one_process(tp: int, ep: int, etp: int) -> None:
    modes = [GenerateOptions(mode=m, max_length=10, beams=2, seed=3) for m in ("greedy", "sample", "beam")]
    expected = [decode(single_process(), options) for options in modes]
    for results in run_ranks(on_rank, 2, tp, ep, etp, modes):
        for options, one, (dp_rank, dp_size, got) in zip(modes, expected, results, strict=True):
            if options.mode == "sample" and dp_size > 1:
                continue  # draws belong to a batch: ranks with other prompts draw other tokens
            wanted = [row[:n].tolist() for row, n in zip(one.tokens_BT, one.lengths_B, strict=True)]
            rows = [row[:n].tolist() for row, n in zip(got.tokens_BT, got.lengths_B, strict=True)]
            size = len(PROMPTS) // dp_size
            assert rows == wanted[dp_rank * size : (dp_rank + 1) * size], options.mode
            assert torch.allclose(got.scores_B, one.scores_B.chunk(dp_size)[dp_rank], rtol=1e-9, atol=0)
