"""A training run from an opened process group to its closing summary."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from conf import compose
from conf.continued import comes_with_weights
from conf.derived.layers import is_dense
from conf.errors import RankLost
from conf.reading.convert import flat
from conf.safety.writing import write_whole
from conf.schema import RunConfig
from data.corpus import open_corpus
from data.tasks.task import task_of
from launch.process import message_of, noted
from model.compiled import compile_seconds
from parallel.engine.deepspeed import zero_stage
from parallel.mesh.axes import Mesh
from parallel.mesh.consensus import on_main
from parallel.mesh.failure import told_to_peers
from trainer.checkpoint.reader import CheckpointReader, check_fingerprints
from trainer.checkpoint.store import CheckpointStore
from trainer.commands.filling import held_out_example, sample_lines
from trainer.device import make_repeatable
from trainer.evaluate import evaluate, unigram_nats
from trainer.loading import locate
from trainer.loop import Loop, evaluates_at, finished
from trainer.report.log import RunLog
from trainer.report.metrics import Report
from trainer.report.progress import ProgressView, open_view
from trainer.report.sinks.jsonl import read_rows
from trainer.report.sinks.sink import Opening
from trainer.report.summary import learning_lines, where_lines
from trainer.resume import (
    TrainState,
    changed_settings,
    check_config_file,
    check_same_run,
    check_same_tokenizer,
    saved_in,
)
from trainer.run_dir import Ending, RunDir, discard_unstarted, open_run_dir, write_config, write_status
from trainer.session import Session, build_session
from trainer.signals import StopRequest


@contextmanager
def accounted() -> Iterator[None]:
    """Account for an error where it is raised: to the launcher and to the other ranks.

    What is closed after it may take long, and peers give up meanwhile; so this is around the work and not the closing.
    """
    with noted(), told_to_peers():
        yield


def run_training(cfg: RunConfig, mesh: Mesh, overrides: Sequence[str]) -> int:
    """Build, resume, train, summarise. `overrides` are all that were typed for the run. Returns the exit code."""
    stop = StopRequest()
    stop.install()
    run = open_run_dir(cfg, mesh)
    store = CheckpointStore(run.checkpoints, mesh, keep_last=cfg.train.keep_last, keep_every=cfg.train.keep_every)
    try:
        try:
            session, state, notes = _open(cfg, mesh, run, store, overrides)
        except BaseException:
            if mesh.is_main:
                discard_unstarted(run)
            raise
        return _train(session, state, notes, stop)
    finally:
        store.close()


def _open(
    cfg: RunConfig, mesh: Mesh, run: RunDir, store: CheckpointStore, overrides: Sequence[str]
) -> tuple[Session, TrainState, list[str]]:
    """The session, where it stands, and what to tell about changes since the checkpoint it continues."""
    corpus = open_corpus(cfg)
    reader = _checkpoint_to_continue(cfg, store)
    notes: list[str] = []
    if reader is not None:
        found = saved_in(reader)
        now = flat(compose.to_dict(cfg))
        check_config_file(run, found, lambda field, value: now[field] == value, overrides)
        saved = found.config()
        check_same_run(saved, cfg)
        notes = changed_settings(saved, cfg)
        notes += check_fingerprints(found.fingerprints, corpus.fingerprint, allow=cfg.train.allow_data_change)
    session = build_session(cfg, mesh, run, corpus, store)
    make_repeatable(session.device)
    state = restore(session, reader)

    def begin() -> None:
        again = evaluates_at(cfg.train, state)
        session.log = RunLog(Opening(run=run, cfg=cfg, resume_step=state.step, evaluates_again=again))
        write_config(run, cfg, overrides)
        write_whole(run.tokenizer, corpus.tokenizer.model)
        write_status(run, "running", step=state.step)

    on_main(begin, mesh)
    return session, state, notes


def _train(session: Session, state: TrainState, notes: list[str], stop: StopRequest) -> int:
    cfg, is_main = session.cfg, session.mesh.is_main
    view = open_view(cfg.logging, is_main=is_main, total_steps=session.total_steps, start_step=state.step)
    loop = Loop(session, state, view, stop)
    failed, rank_lost = True, False
    try:
        with accounted():
            _announce(view, session, state)
            for note in session.corpus.notes:
                view.say(f"  {note}")
            for note in notes:
                view.say(f"  changed since the checkpoint: {note}")
            ending = loop.run()
            if ending == "stopped":
                stop.agree(session.mesh)
            lines = _closing(session, loop, ending)
        if is_main:  # before the log is closed, which waits a while for a network
            write_status(session.run, ending, step=loop.state.step, reason=stop.reason)
        failed = False
    except BaseException as error:
        rank_lost = isinstance(error, RankLost)
        if is_main:
            with suppress(OSError):  # losing the note must not hide the error itself
                write_status(session.run, "failed", step=loop.state.step, reason=message_of(error))
        raise
    finally:
        view.close()
        session.close(failed=failed, rank_lost=rank_lost)
    if is_main:
        saved = [path.name for path in session.store.list()]
        command = (*task_of(session.cfg.data).command, held_out_example(session))
        lines += where_lines(session.run, session.log.where(), checkpoints=saved, command=command)
        with suppress(OSError):  # a terminal or pipe that is gone
            print("\n".join(lines), flush=True)
    return stop.exit_code


def _checkpoint_to_continue(cfg: RunConfig, store: CheckpointStore) -> CheckpointReader | None:
    if cfg.train.resume == "never" and not _is_restart():
        store.require_empty()
        return None
    path = store.latest_valid()
    if path is None and cfg.train.resume == "required":
        store.raise_missing()
    return CheckpointReader(path) if path is not None else None


def _is_restart() -> bool:
    """Whether this run's own launcher or scheduler has started it before."""
    names = ["TORCHELASTIC_RESTART_COUNT", *(["SLURM_RESTART_COUNT"] if "SLURM_JOB_ID" in os.environ else [])]
    return any(os.environ.get(name, "0") not in ("", "0") for name in names)


def restore(session: Session, reader: CheckpointReader | None) -> TrainState:
    """Load weights, moments and position from `reader`, or only weights from `train.from_checkpoint`."""
    weights = session.cfg.train.from_checkpoint
    if reader is not None:
        reader.check_names(session.shards)
        session.engine.load_state(reader.for_engine(session.shards))
        return saved_in(reader).state
    if weights is not None:
        origin, checkpoint = locate(Path(weights), session.mesh, field="train.from_checkpoint")
        source = CheckpointReader(checkpoint)
        found = saved_in(source)
        now = flat(compose.to_dict(session.cfg))
        check_config_file(origin, found, lambda field, value: comes_with_weights(field) and now[field] == value, None)
        if not session.cfg.train.allow_data_change:
            check_same_tokenizer(found, session.corpus.tokenizer.fingerprint, origin)
        source.check_names(session.shards)
        session.engine.load_state(source.for_engine(session.shards), weights_only=True)
        return TrainState(generation=found.state.generation)
    return TrainState()


def _announce(view: ProgressView, session: Session, state: TrainState) -> None:
    cfg, mesh = session.cfg, session.mesh
    kind = "dense" if is_dense(cfg) else f"{cfg.moe.num_experts} experts every {cfg.moe.sparse_every}"
    view.say(
        f"{session.run.root}: {cfg.model.preset} ({kind}) on {mesh.world.size} ranks: tp {mesh.tp.size}, "
        f"dp {mesh.dp.size}, ep {mesh.ep.size}, etp {mesh.etp.size}, {zero_words(cfg, mesh)}, "
        f"{cfg.train.precision}, {session.device.type}"
    )
    if finished(cfg.train, state):
        view.say(
            f"this run has reached its end, step {state.step}: a larger train.steps (or train.tokens) continues it"
        )
    elif state.step:
        view.say(f"continuing at step {state.step}")


def zero_words(cfg: RunConfig, mesh: Mesh) -> str:
    """The stage that is run, and why where it is not the configured one."""
    stage = zero_stage(cfg, mesh)
    why = f" (parallel.zero={cfg.parallel.zero}: no parameter has copies to share out)"
    return f"ZeRO-{stage}{why if stage != cfg.parallel.zero else ''}"


def _closing(session: Session, loop: Loop, ending: Ending) -> list[str]:
    """Every rank takes part (evaluation and filling are collective); rank 0 prints what comes back."""
    if ending == "stopped" or loop.last is None:
        saved = [path.name for path in session.store.list()]
        left = f"the newest checkpoint is {saved[0]}" if saved else "there is no checkpoint yet"
        return [f"stopped on {loop.stop.reason} after step {loop.state.step}; {left}"]
    shuffled = evaluate(
        session.module,
        session.validation_batches(shuffled_inputs=True),
        session.new_meter(),
        mesh=session.mesh,
        device=session.device,
    )
    unigram = unigram_nats(session.corpus, session.validation_batches(), session.mesh)
    last = loop.last
    first_loss = loop.first.loss if loop.first else logged_loss(session.run.metrics, step=0)
    session.log.write(loop.state.step, closing_metrics(last, shuffled, unigram))
    compiled = f"compiling            {compile_seconds():.0f} s of this start"
    learned = learning_lines(first_loss=first_loss, last=last, unigram_nats=unigram, shuffled=shuffled)
    learned += [] if session.cfg.train.compile == "off" else [compiled]
    return ["", *learned, "", *sample_lines(session), ""]


def closing_metrics(last: Report, shuffled: Report, unigram: float) -> dict[str, float]:
    """The three measures of learning under stable names."""
    return {
        "eval/loss_shuffled_input": shuffled.loss,
        "eval/loss_text_shuffled_input": shuffled.loss_text,
        "eval/unigram_text": unigram,
        "eval/text_below_unigram": unigram - last.loss_text,
    }


def logged_loss(metrics: Path, *, step: int) -> float | None:
    """Validation loss that an earlier attempt of the run logged at `step`; None where there is none."""
    if not metrics.exists():
        return None
    return next((row["eval/loss"] for row in read_rows(metrics) if row["step"] == step and "eval/loss" in row), None)
