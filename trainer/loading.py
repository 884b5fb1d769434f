"""Open a finished (or running) run in one process: its configuration, newest whole checkpoint, tokenizer and model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from conf.derived.groups import micro_batch_size
from conf.errors import CheckpointError, ConfigError
from conf.reading.paths import MANIFEST, is_there, user_path
from conf.reading.setting_files import key_of
from conf.schema import DataConfig, RunConfig
from data.text.tokenizer import Tokenizer
from launch.commands.known import require_run
from model.build import build_model
from model.contract import Model
from parallel.engine.protocol import compute_dtype
from parallel.layers.sharding import shard_of, tagged_parameters
from parallel.mesh.axes import Mesh, single_process
from trainer.checkpoint.reader import CheckpointReader, load_weights
from trainer.checkpoint.store import CheckpointStore
from trainer.device import local_device
from trainer.resume import NO_TOKENIZER, Saved, check_config_file, saved_in
from trainer.run_dir import RunDir


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedRun:
    """A trained model ready for use."""

    cfg: RunConfig
    run: RunDir
    reader: CheckpointReader
    saved: Saved  # what the checkpoint says of its run
    module: Model
    tokenizer: Tokenizer
    device: torch.device
    mesh: Mesh


def locate(path: Path, mesh: Mesh, *, field: str = "RUN") -> tuple[RunDir, Path]:
    """The run folder and the checkpoint that `path` names: a run folder (newest whole one) or one checkpoint in it.

    Collective. Raises ConfigError naming `field` for another folder, CheckpointError for a run without checkpoints.
    """
    require_run(path, field=field)
    path = user_path(path)
    if is_there(path / MANIFEST):
        return RunDir(root=path.resolve().parent.parent), path
    run = RunDir(root=path)
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


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedRun:
    """A run and the checkpoint in it that is used, with what its verified state.json says."""

    run: RunDir
    reader: CheckpointReader
    saved: Saved
    cfg: RunConfig  # the checkpoint's, with what was typed on top

    def tokenizer(self) -> Tokenizer:
        """The tokenizer beside the checkpoint. Raises ConfigError unless it is the one it was trained with."""
        found = Tokenizer.from_file(self.run.tokenizer, sentinels=self.cfg.data.sentinels)
        wanted = self.saved.fingerprints.get("tokenizer", NO_TOKENIZER)
        if wanted not in (NO_TOKENIZER, found.fingerprint):
            raise ConfigError(
                str(self.run.tokenizer),
                got=f"a tokenizer of fingerprint {found.fingerprint}",
                needs=f"the one of {wanted} that {self.reader.path} was trained with: to its weights every id of "
                "another is another word",
                hint="restoring the file from a copy",
            )
        return found


def open_run(path: Path, mesh: Mesh, *, overrides: Sequence[str] = ()) -> OpenedRun:
    """The run and checkpoint that `path` names (collective), its configuration as the checkpoint has it.

    Raises ConfigError(s) where config.yaml beside it was changed, unless what differs is typed, and for a tokenizer
    that is not the run's; for other errors see `locate` and `saved_in`.
    """
    run, checkpoint = locate(path, mesh)
    reader = CheckpointReader(checkpoint)
    saved = saved_in(reader)
    typed = {key_of(override) for override in overrides}
    check_config_file(run, saved, lambda field, _: not {field, field.partition(".")[0]} & typed, None)
    cfg = saved.config(overrides)
    if typed & {"data.tokenizer", "data.sentinels"}:
        _check_tokenizer(cfg.data, saved.config().data)
    return OpenedRun(run=run, reader=reader, saved=saved, cfg=cfg)


def _check_tokenizer(typed: DataConfig, trained: DataConfig) -> None:
    """Raise ConfigError for another tokenizer than the run's: its own is read, whatever was typed."""
    for name in ("tokenizer", "sentinels"):
        got, own = getattr(typed, name), getattr(trained, name)
        if got != own:
            needs = "the checkpoint's own: to its weights every id of another tokenizer is another word"
            raise ConfigError(f"data.{name}", got=got, needs=needs, hint="leaving it out")


def load_run(path: Path, *, overrides: Sequence[str] = ()) -> LoadedRun:
    """Load a run's weights in its precision at one process, whatever layout wrote them; every file is verified."""
    mesh = single_process()
    opened = open_run(path, mesh, overrides=overrides)
    tokenizer = opened.tokenizer()
    cfg = single_process_config(opened.cfg, opened.run)
    device = local_device(cfg)
    module = build_model(cfg, mesh, device=device, dtype=compute_dtype(cfg.train.precision))
    reader = opened.reader
    reader.check_names({name: shard_of(parameter, mesh) for name, parameter, _ in tagged_parameters(module)})
    load_weights(module, reader, mesh)
    module.eval()
    return LoadedRun(
        cfg=cfg,
        run=opened.run,
        reader=reader,
        saved=opened.saved,
        module=module,
        tokenizer=tokenizer,
        device=device,
        mesh=mesh,
    )
