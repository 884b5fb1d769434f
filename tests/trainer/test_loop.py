"""When the loop evaluates, saves and stops; the parts it drives are recorded, not run."""

from types import SimpleNamespace

import pytest

from conf.compose import compose
from trainer import loop
from trainer.evaluate import EvaluationStopped
from trainer.report.metrics import Report
from trainer.report.progress import SilentView
from trainer.resume import TrainState
from trainer.step import StepCounts

TRAIN = ("train.steps=6", "train.eval_every=2", "train.save_every=3")


class Recorder:
    """A session whose parts write down what was asked of them."""

    def __init__(self, cfg):
        self.cfg, self.events, self.total_steps = cfg, [], cfg.train.steps
        self.module = self.engine = self.mesh = self.device = None
        self.store = SimpleNamespace(poll=lambda: None, wait=lambda: self.events.append("wait"), failed=0)
        self.log = SimpleNamespace(write=lambda step, metrics: None)

    def new_meter(self):
        return SimpleNamespace(reduce=lambda groups: REPORT)

    def train_batches(self, start_step):
        self.events.append(f"train from {start_step}")
        return Batches()

    def validation_batches(self):
        return ()

    def save(self, state):
        self.events.append(f"save {state.step}")


class Batches:
    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def __next__(self):
        return SimpleNamespace(epoch=0.0)


THROUGHPUT = SimpleNamespace(add=lambda **numbers: None, take=dict, restart=lambda: None)
REPORT = Report(loss=1.0, aux_loss=0.0, z_loss=0.0, by_kind={"text": 1.0, "sentinel": 1.0}, tokens=1.0, layers=())


def events(monkeypatch, *, step=0, stop_after=None, stop_in_evaluation_at=None):
    """What a run that stands at `step` does, and how it ends."""
    session = Recorder(compose(TRAIN))
    state = TrainState(step=step, tokens=step)
    monkeypatch.setattr(loop, "Throughput", lambda *arguments: THROUGHPUT)

    def evaluate(*arguments, **settings):
        session.events.append(f"eval {running.state.step}")
        if running.state.step == stop_in_evaluation_at:
            raise EvaluationStopped
        return REPORT

    monkeypatch.setattr(loop, "evaluate", evaluate)

    def train_step(*arguments, **settings):
        stop = running.state.step + 1 == stop_after
        return StepCounts(inputs=0, targets=1, stop=stop), 1.0

    monkeypatch.setattr(loop, "train_step", train_step)
    running = loop.Loop(session, state, SilentView(), SimpleNamespace(requested=False))
    return session.events, running.run()


def test_a_whole_run(monkeypatch):
    assert events(monkeypatch) == (
        ["eval 0", "train from 0", "eval 2", "save 3", "eval 4", "save 6", "eval 6", "wait"],
        "done",
    )


@pytest.mark.parametrize("limit", ["train.steps=6", "train.tokens=6"])
def test_statistics_are_taken_in_the_steps_that_are_logged(monkeypatch, limit):
    session, asked, written = Recorder(compose([limit, "train.log_every=4"])), [], []
    session.log = SimpleNamespace(write=lambda step, metrics: written.append(step) if "train/lr" in metrics else None)
    monkeypatch.setattr(loop, "Throughput", lambda *arguments: THROUGHPUT)
    monkeypatch.setattr(loop, "evaluate", lambda *arguments, **settings: REPORT)

    def train_step(*arguments, **settings):
        counts = StepCounts(inputs=0, targets=1, stop=False)
        asked.extend([running.state.step + 1] if settings["logs"](counts) else [])
        return counts, 1.0

    monkeypatch.setattr(loop, "train_step", train_step)
    running = loop.Loop(session, TrainState(), SilentView(), SimpleNamespace(requested=False))
    running.run()
    assert asked == written == [4, 6]


def test_a_stop_saves_at_once_and_does_not_evaluate(monkeypatch):
    assert events(monkeypatch, stop_after=4) == (
        ["eval 0", "train from 0", "eval 2", "save 3", "save 4", "wait"],
        "stopped",
    )


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (0, ["eval 0", "train from 0", "wait"]),
        (4, ["eval 0", "train from 0", "eval 2", "save 3", "eval 4", "save 4", "wait"]),
        (6, ["eval 0", "train from 0", "eval 2", "save 3", "eval 4", "save 6", "eval 6", "wait"]),
    ],
)
def test_a_stop_during_an_evaluation_takes_no_further_step(monkeypatch, at, expected):
    assert events(monkeypatch, stop_in_evaluation_at=at) == (expected, "stopped")


def test_a_resumed_run_makes_the_evaluation_its_predecessor_may_have_missed(monkeypatch):
    assert events(monkeypatch, step=4)[0] == ["eval 4", "train from 4", "save 6", "eval 6", "wait"]
    assert events(monkeypatch, step=3)[0] == ["train from 3", "eval 4", "save 6", "eval 6", "wait"]


def test_a_finished_run_is_evaluated_and_neither_trained_nor_saved(monkeypatch):
    assert events(monkeypatch, step=6) == (["eval 6", "wait"], "done")


@pytest.mark.parametrize(("step", "tokens", "ends"), [(5, 99, False), (6, 0, True), (1, 100, True)])
def test_whichever_limit_comes_first(step, tokens, ends):
    train = compose([*TRAIN, "train.tokens=100"]).train
    assert loop.finished(train, TrainState(step=step, tokens=tokens)) == ends
