"""A training run from an opened process group to its closing summary."""

from __future__ import annotations

import json
import time
from pathlib import Path

from conf.schema import RunConfig
from data.corpus import Corpus, open_corpus
from parallel.types import ParallelGroups
from trainer.checkpoint.reader import CheckpointReader, check_fingerprints
from trainer.checkpoint.store import CheckpointStore
from trainer.evaluate import evaluate
from trainer.filling import sample_lines
from trainer.log import RunLog
from trainer.loop import Ending, Loop
from trainer.metrics import Report
from trainer.progress import ProgressView, open_view
from trainer.resume import TrainState, changed_settings, check_same_run
from trainer.run_dir import RunDir, open_run_dir, write_config
from trainer.session import Session, build_session
from trainer.signals import StopRequest
from trainer.summary import learning_lines, where_lines


def run_training(cfg: RunConfig, groups: ParallelGroups) -> int:
    """Build, resume, train, summarise. Returns the process's exit code."""
    stop = StopRequest()
    stop.install()
    run = open_run_dir(cfg, groups)
    store = CheckpointStore(run.checkpoints, groups, keep_last=cfg.train.keep_last, keep_every=cfg.train.keep_every)
    corpus = open_corpus(cfg)
    reader = _checkpoint_to_continue(cfg, store)
    if reader is not None:
        check_same_run(reader.state["config"], cfg)
        check_fingerprints(reader.state["fingerprints"], corpus.fingerprint)
    session = build_session(cfg, groups, run, corpus, store)
    state = restore(session, reader)
    session.log = RunLog(run, cfg, is_main=groups.is_main, resume_step=state.step)
    if groups.is_main:
        write_config(run, cfg)
        run.tokenizer.write_bytes(corpus.tokenizer.model)
    view = open_view(cfg.logging, is_main=groups.is_main, total_steps=session.total_steps, start_step=state.step)
    _announce(view, session, state)
    for change in changed_settings(reader.state["config"], cfg) if reader is not None else ():
        view.say(f"  changed since the checkpoint: {change}")
    loop = Loop(session, state, view, stop)
    try:
        ending = loop.run()
        lines = _closing(session, loop, ending)
    finally:
        view.close()
        session.close()
    if groups.is_main:
        print("\n".join(lines), flush=True)
        _write_status(run, loop, ending)
    return 0


def _checkpoint_to_continue(cfg: RunConfig, store: CheckpointStore) -> CheckpointReader | None:
    if cfg.train.resume == "never":
        store.require_empty()
        return None
    path = store.latest_valid()
    if path is None and cfg.train.resume == "required":
        store.raise_missing()
    return CheckpointReader(path) if path is not None else None


def restore(session: Session, reader: CheckpointReader | None) -> TrainState:
    """Load weights, moments and position from `reader`, or only weights from `train.from_checkpoint`."""
    weights = session.cfg.train.from_checkpoint
    if reader is not None:
        reader.check_names(session.shards)
        session.engine.load_state(reader.for_engine(session.shards))
        return TrainState.from_json(reader.state)
    if weights is not None:
        source = CheckpointReader(Path(weights))
        source.check_names(session.shards)
        session.engine.load_state(source.for_engine(session.shards), weights_only=True)
    return TrainState()


def _announce(view: ProgressView, session: Session, state: TrainState) -> None:
    cfg, groups = session.cfg, session.groups
    kind = f"{cfg.moe.num_experts} experts every {cfg.moe.sparse_every}" if cfg.model.moe == "switch" else "dense"
    view.say(
        f"{session.run.root}: {cfg.model.preset} ({kind}) on {groups.world.size} ranks: tp {groups.tp.size}, "
        f"dp {groups.dp.size}, ep {groups.ep.size}, etp {groups.etp.size}, ZeRO-{cfg.parallel.zero}, "
        f"{cfg.train.precision}, {session.device.type}"
    )
    if state.step:
        view.say(f"continuing at step {state.step}")


def _closing(session: Session, loop: Loop, ending: Ending) -> list[str]:
    """Every rank takes part (evaluation and filling are collective); rank 0 prints what comes back."""
    where = where_lines(
        session.run, wandb_mode=session.log.mode, checkpoints=[path.name for path in session.store.list()]
    )
    if ending == "stopped" or loop.last is None:
        return [
            f"stopped on {loop.stop.name or 'request'} after step {loop.state.step}; a checkpoint was saved",
            *where,
        ]
    shuffled = evaluate(
        session.module,
        session.validation_batches(shuffled_inputs=True),
        session.new_meter(),
        groups=session.groups,
        device=session.device,
    )
    unigram = unigram_nats(session.corpus, session)
    first, last = loop.first, loop.last
    session.log.write(loop.state.step, closing_metrics(last, shuffled, unigram))
    learned = learning_lines(first=first, last=last, unigram_nats=unigram, shuffled=shuffled)
    return ["", *learned, "", *sample_lines(session), "", *where]


def closing_metrics(last: Report, shuffled: Report, unigram: float) -> dict[str, float]:
    """The three measures of learning under stable names."""
    return {
        "eval/loss_shuffled_input": shuffled.loss,
        "eval/loss_text_shuffled_input": shuffled.loss_text,
        "eval/unigram_text": unigram,
        "eval/text_below_unigram": unigram - last.loss_text,
    }


def unigram_nats(corpus: Corpus, session: Session) -> float:
    """Unigram cross-entropy of the validation targets' text tokens (each rank of the data axis sees its own rows)."""
    import numpy as np

    targets = [micro.targets_BT for batch in session.validation_batches() for micro in batch.micro]
    return corpus.unigram_nats(np.concatenate(targets))


def _write_status(run: RunDir, loop: Loop, ending: Ending) -> None:
    status = {"ending": ending, "step": loop.state.step, "signal": loop.stop.name, "time": time.time()}
    temporary = run.status.with_suffix(".tmp")
    temporary.write_text(json.dumps(status) + "\n")
    temporary.replace(run.status)
