"""The training loop: step, log, evaluate, save, stop; the same decisions on every rank."""

from __future__ import annotations

import time
from collections.abc import Iterator

from conf.schema import TrainConfig
from data.batch import StepBatch
from parallel.mesh.consensus import any_rank
from trainer.checkpoint.store import SaveResult
from trainer.evaluate import EvaluationStopped, evaluate
from trainer.report.metrics import Meter, Report, flat_metrics, plural, router_metrics
from trainer.report.progress import ProgressView
from trainer.report.routing_table import routing_table
from trainer.report.throughput import Throughput
from trainer.resume import TrainState
from trainer.run_dir import Ending
from trainer.schedule import learning_rate
from trainer.session import Session
from trainer.signals import StopRequest
from trainer.step import StepCounts, train_step


class Loop:
    """Runs a session from `state` to its limit. Rank 0 talks; all ranks compute the same decisions."""

    def __init__(self, session: Session, state: TrainState, view: ProgressView, stop: StopRequest) -> None:
        self.session, self.state, self.view, self.stop = session, state, view, stop
        self.first: Report | None = None  # evaluation before the first step of the run
        self.last: Report | None = None  # newest evaluation
        self._saved_step = state.step
        self._throughput = Throughput(session.cfg, session.mesh, session.device)

    def run(self) -> Ending:
        """Train to the limit or to a stop request; ends with an evaluation and a checkpoint."""
        stopped = False
        if not self._finished():
            stopped = self._train()
        self._save()  # before the last evaluation: whoever loses patience there loses no step
        if not stopped:
            stopped = self._evaluate()
        self.session.store.wait()
        return "stopped" if stopped else "done"

    def _train(self) -> bool:
        """Steps up to the limit; returns whether a stop was asked for."""
        train, stopped = self.session.cfg.train, False
        if evaluates_at(train, self.state):
            stopped = self._evaluate()
            self.first = self.last if self.state.step == 0 else None
        with self.session.train_batches(self.state.step) as batches:
            while not self._finished() and not stopped:
                stopped = self._one_step(batches)
                if _due(self.state.step, train.save_every) and not self._finished():
                    self._save()
                if _due(self.state.step, train.eval_every) and not self._finished() and not stopped:
                    stopped = self._evaluate()
        return stopped

    def _finished(self) -> bool:
        return finished(self.session.cfg.train, self.state)

    def _one_step(self, batches: Iterator[StepBatch]) -> bool:
        """One step and its log row; returns whether some rank asked to stop."""
        session, cfg = self.session, self.session.cfg
        began = time.perf_counter()
        lr = learning_rate(cfg.schedule, self.state.step + 1, session.total_steps)
        meter = session.new_meter()
        batch = next(batches)
        waited_s = time.perf_counter() - began
        counts, grad_norm = train_step(
            session.engine,
            batch,
            meter,
            lr=lr,
            stop=self.stop.requested,
            cfg=cfg,
            mesh=session.mesh,
            device=session.device,
            logs=self._logs,
        )
        self._report_save(session.store.poll())
        seconds = time.perf_counter() - began
        tokens = counts.inputs + counts.targets
        self.state = self.state.advanced(tokens=tokens, wall_s=seconds)
        self._throughput.add(tokens=tokens, sequences=cfg.train.global_batch, seconds=seconds, waited_s=waited_s)
        if self._logs_at(self.state):
            self._log_step(meter, lr=lr, grad_norm=grad_norm, epoch=batch.epoch)
        return counts.stop

    def _logs(self, counts: StepCounts) -> bool:
        """Whether the step that is about to be taken with so many tokens will be logged."""
        return self._logs_at(self.state.advanced(tokens=counts.inputs + counts.targets, wall_s=0.0))

    def _logs_at(self, state: TrainState) -> bool:
        train = self.session.cfg.train
        return _due(state.step, train.log_every) or finished(train, state)

    def _log_step(self, meter: Meter, *, lr: float, grad_norm: float, epoch: float) -> None:
        report = meter.reduce(self.session.mesh)
        metrics = flat_metrics("train", report) | {
            "train/lr": lr,
            "train/grad_norm": grad_norm,
            "train/tokens": float(self.state.tokens),
            "train/epoch": epoch,
        }
        if report.layers:
            metrics |= {"train/aux_loss": report.aux_loss, "train/z_loss": report.z_loss}
        metrics |= self._throughput.take()
        if self.session.store.failed:
            metrics["train/ckpt_failed"] = float(self.session.store.failed)
        routing = router_metrics(report, prefix="train/router", per_expert=False)
        self.session.log.write(self.state.step, {**metrics, **routing})
        self.view.update(self.state.step, metrics)

    def _evaluate(self) -> bool:
        """Measure and log; returns whether a stop request cut it short (a continued run evaluates there again)."""
        session = self.session
        try:
            report = evaluate(
                session.module,
                session.validation_batches(),
                session.new_meter(),
                mesh=session.mesh,
                device=session.device,
                stop_asked=lambda: any_rank(self.stop.requested, session.mesh),
            )
        except EvaluationStopped:
            return True
        self.last = report
        routing = router_metrics(report, prefix="router", per_expert=True)
        session.log.write(self.state.step, {**flat_metrics("eval", report), **routing})
        self.view.say(
            f"eval at step {self.state.step}: loss {report.loss:.3f} "
            f"({', '.join(f'{plural(kind)} {loss:.3f}' for kind, loss in report.by_kind.items())})"
        )
        if report.layers:
            self.view.say(routing_table(report, capacity_factor=session.cfg.moe.eval_capacity_factor))
        self._throughput.restart()
        return False

    def _report_save(self, result: SaveResult | None) -> None:
        if result is not None and result.error:
            self.view.say(f"checkpoint of step {result.step} FAILED, older ones are kept: {result.error}")

    def _save(self) -> None:
        if self._saved_step == self.state.step:
            return
        self.session.save(self.state)
        self._saved_step = self.state.step
        self._throughput.restart()


def finished(train: TrainConfig, state: TrainState) -> bool:
    """Whether a run that stands at `state` has reached its limit."""
    by_steps = train.steps is not None and state.step >= train.steps
    by_tokens = train.tokens is not None and state.tokens >= train.tokens
    return by_steps or by_tokens


def evaluates_at(train: TrainConfig, state: TrainState) -> bool:
    """Whether an evaluation belongs to the step at which a run begins or goes on.

    One that resumes there evaluates (again): its predecessor may have been killed between the save and the evaluation.
    """
    return state.step == 0 or _due(state.step, train.eval_every) or finished(train, state)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
