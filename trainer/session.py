"""Everything a run consists of, built once in the right order: groups, data, model, engine, checkpoints, log."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from conf.derived.derive import planned_steps
from conf.derived.layers import layer_names
from conf.schema import RunConfig
from data.corpus import Corpus
from data.loader import Loader, build_loader
from data.tasks.task import target_kinds
from model.build import build_model
from model.compiled import compile_steps
from model.contract import Model
from model.init import init_key, initial_masters
from parallel.engine.deepspeed import build_engine
from parallel.engine.protocol import Engine, compute_dtype
from parallel.layers.sharding import Shard, shard_of, tagged_parameters
from parallel.mesh.axes import Mesh
from trainer.checkpoint.store import CheckpointStore
from trainer.device import local_device
from trainer.report.log import RunLog
from trainer.report.metrics import Meter
from trainer.resume import TrainState
from trainer.run_dir import RunDir


@dataclass(kw_only=True, slots=True)
class Session:
    """One run on one rank."""

    cfg: RunConfig
    mesh: Mesh
    device: torch.device
    run: RunDir
    corpus: Corpus
    engine: Engine[Model]
    store: CheckpointStore
    log: RunLog
    shards: dict[str, Shard]
    total_steps: int

    @property
    def module(self) -> Model:
        """The model, for evaluation and generation."""
        return self.engine.module

    def new_meter(self) -> Meter:
        """A meter for one step or one evaluation."""
        return Meter(
            kinds=target_kinds(self.cfg.data, self.corpus.tokenizer.vocabulary),
            layer_names=layer_names(self.cfg),
        )

    def train_batches(self, start_step: int) -> Loader:
        """Training batches from a step on."""
        return build_loader(
            self.corpus,
            self.cfg,
            split="train",
            dp_rank=self.mesh.dp.rank,
            dp_size=self.mesh.dp.size,
            start_step=start_step,
        )

    def validation_batches(self, *, shuffled_inputs: bool = False) -> Loader:
        """The held-out batches, the same ones at every evaluation."""
        return build_loader(
            self.corpus,
            self.cfg,
            split="validation",
            dp_rank=self.mesh.dp.rank,
            dp_size=self.mesh.dp.size,
            shuffled_inputs=shuffled_inputs,
        )

    def save(self, state: TrainState) -> None:
        """Write a checkpoint of `state` (collective)."""
        self.store.save(
            state.step,
            self.engine.read_state(),
            self.shards,
            state.to_json(self.cfg, self.corpus.fingerprint),
        )

    def close(self, *, failed: bool = False, rank_lost: bool = False) -> None:
        """Finish what runs in the background: the save first, since the log may wait for a network."""
        try:
            self.store.close(abandon=rank_lost)
        finally:
            self.log.close(failed=failed)


def build_initialised(cfg: RunConfig, mesh: Mesh, device: torch.device) -> Engine[Model]:
    """Model and engine with initial weights; the fp32 masters are not rounded to the compute dtype."""
    module = build_model(cfg, mesh, device=device, dtype=compute_dtype(cfg.train.precision))
    engine = build_engine(module, cfg, mesh)
    if compute_dtype(cfg.train.precision) != torch.float32:
        # The engine copied its masters from weights that are rounded already.
        exact = initial_masters(module, mesh, init_key(cfg))
        engine.load_state(exact, weights_only=True)
    compile_steps(module, cfg, device)
    return engine


def build_session(cfg: RunConfig, mesh: Mesh, run: RunDir, corpus: Corpus, store: CheckpointStore) -> Session:
    """Model and engine on top of groups and data. The log is opened by the caller, who knows where the run resumes."""
    device = local_device(cfg)
    engine = build_initialised(cfg, mesh, device)
    shards = {name: shard_of(parameter, mesh) for name, parameter, _ in tagged_parameters(engine.module)}
    return Session(
        cfg=cfg,
        mesh=mesh,
        device=device,
        run=run,
        corpus=corpus,
        engine=engine,
        store=store,
        log=RunLog(),
        shards=shards,
        total_steps=planned_steps(cfg.train, cfg.data),
    )
