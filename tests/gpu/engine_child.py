"""A training process of the engine tests: `python -m tests.gpu.engine_child SPEC.json`, alone or under torchrun.

DeepSpeed fixes its accelerator when it is imported, and the test suite's own process has it on the CPU.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from conf.compose import compose
from conf.derived.layers import layer_names
from data.tasks.task import text_kind
from data.text.vocabulary import appended
from launch.process import world_from_environment
from measure.verify.observe.batches import step_batch
from parallel.layers.sharding import shard_of, tagged_parameters
from parallel.mesh.groups import destroy_groups, init_groups
from trainer.checkpoint.reader import CheckpointReader
from trainer.checkpoint.store import CheckpointStore
from trainer.device import local_device, make_repeatable
from trainer.report.metrics import Meter
from trainer.session import build_initialised
from trainer.step import train_step

LR = 1e-2


def train(spec: dict, case: dict) -> list[tuple[float, float]]:
    """(loss, gradient norm) of each step; starts from `load` and ends with `save` where the case names folders."""
    cfg = compose([*case["overrides"], f"parallel.backend={spec['backend']}"], world=world_from_environment())
    mesh = init_groups(cfg.parallel)
    device = local_device(cfg)
    assert device.type == spec["device"], f"runs on {device}"
    make_repeatable(device)
    engine = build_initialised(cfg, mesh, device)
    shards = {name: shard_of(parameter, mesh) for name, parameter, _ in tagged_parameters(engine.module)}
    first = 0
    if case.get("load"):
        reader = CheckpointReader(next(path for path in Path(case["load"]).iterdir() if path.name.startswith("step_")))
        engine.load_state(reader.for_engine(shards))
        first = reader.step
    history = []
    for step in range(first, first + case["steps"]):
        meter = Meter(kinds={"text": text_kind(appended(200, 0))}, layer_names=layer_names(cfg))
        batch = step_batch(cfg, step, dp_rank=mesh.dp.rank)
        _, norm = train_step(engine, batch, meter, lr=LR, stop=False, cfg=cfg, mesh=mesh, device=device)
        history.append((meter.reduce(mesh).loss, norm))
    if case.get("save"):
        store = CheckpointStore(Path(case["save"]), mesh, keep_last=1, keep_every=None)
        store.save(first + case["steps"], engine.read_state(), shards, {"step": first + case["steps"]})
        assert store.wait().error is None
        store.close()
    return history


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    histories = [train(spec, case) for case in spec["cases"]]
    if os.environ.get("RANK", "0") == "0":
        Path(spec["out"]).write_text(json.dumps(histories))
    destroy_groups()


if __name__ == "__main__":
    main()
