"""Open a finished (or running) run in one process: its configuration, newest whole checkpoint, tokenizer and model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from conf import compose
from conf.derived.groups import micro_batch_size
from conf.errors import CheckpointError, ConfigError
from conf.reading.paths import is_there, user_path
from conf.schema import RunConfig
from data.text.tokenizer import Tokenizer
from launch.commands.known import run_hint
from model.build import build_model
from model.contract import Model
from parallel.engine.protocol import compute_dtype
from parallel.layers.sharding import shard_of, tagged_parameters
from parallel.mesh.axes import Mesh, single_process
from trainer.checkpoint.reader import CheckpointReader, load_weights
from trainer.checkpoint.store import CheckpointStore
from trainer.device import local_device
from trainer.run_dir import RunDir


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedRun:
    """A trained model ready for use."""

    cfg: RunConfig
    run: RunDir
    reader: CheckpointReader
    module: Model
    tokenizer: Tokenizer
    device: torch.device
    mesh: Mesh


def locate(path: Path, mesh: Mesh, *, field: str = "RUN") -> tuple[RunDir, Path]:
    """The run folder and the checkpoint that `path` names: a run folder (newest whole one) or one checkpoint in it.

    Collective. Raises ConfigError naming `field` for another folder, CheckpointError for a run without checkpoints.
    """
    path = user_path(path)
    if is_there(path / "manifest.json"):
        return RunDir(root=path.resolve().parent.parent), path
    run = RunDir(root=path)
    if not is_there(run.config):
        needs = "a run folder or one of its checkpoints"
        raise ConfigError(field, got=str(path), needs=needs, hint=run_hint(str(path)))
    store = CheckpointStore(run.checkpoints, mesh, lock=False)
    newest = store.latest_valid()
    if newest is None:
        raise CheckpointError(f"{run.checkpoints} holds no checkpoint yet; train first or name another run")
    return run, newest


def single_process_config(cfg: RunConfig, run: RunDir) -> RunConfig:
    """The run's configuration at one rank: the same global batch in micro-batches of the size it was trained with."""
    micro = micro_batch_size(cfg)
    return replace(
        cfg,
        launch=replace(cfg.launch, nproc=1, nodes=1),
        parallel=replace(cfg.parallel, tp=1, ep=1, etp=1, zero=0),
        train=replace(cfg.train, accumulation=cfg.train.global_batch // micro),
        data=replace(cfg.data, tokenizer=str(run.tokenizer)),
    )


def load_run(path: Path, *, overrides: Sequence[str] = ()) -> LoadedRun:
    """Load a run's weights in its precision at one process, whatever layout wrote them; every file is verified."""
    run, checkpoint = locate(path, single_process())
    cfg = single_process_config(compose.load(run.config, overrides=overrides), run)
    mesh = single_process()
    device = local_device(cfg)
    module = build_model(cfg, mesh, device=device, dtype=compute_dtype(cfg.train.precision))
    reader = CheckpointReader(checkpoint)
    reader.check_names({name: shard_of(parameter, mesh) for name, parameter, _ in tagged_parameters(module)})
    load_weights(module, reader, mesh)
    module.eval()
    tokenizer = Tokenizer.from_file(run.tokenizer, sentinels=cfg.data.sentinels)
    return LoadedRun(cfg=cfg, run=run, reader=reader, module=module, tokenizer=tokenizer, device=device, mesh=mesh)
