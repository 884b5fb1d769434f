"""A grid runs what is missing, goes on with what is short, refuses what is another run, and stops what it started.

The runs here only write what a run leaves behind; `test_studies.py` trains real ones.
"""

import json
from functools import cache

import pytest

from conf.compose import compose, dump
from conf.errors import ConfigError, StudyError
from measure.studies import grid
from measure.studies.grid import Cell, run_grid
from tests.measure.studies.tiny import TINY
from trainer.run_dir import RunDir


@cache
def _composed(arguments):
    return compose(arguments)


def composed(arguments):
    """`compose` is a quarter of a second, and these tests ask for the same again and again."""
    return _composed(tuple(arguments))


def cell(name, *more, steps=4):
    return Cell(name=name, overrides=(*TINY, f"train.steps={steps}", *more))


class FakeRun:
    """A process that needs two looks to end; leaves the folder of a run that ended as told."""

    alive = 0
    most_alive = 0

    def __init__(self, overrides, log, *, ending="done", code=0, looks=2):
        self.overrides, self.log, self.ending, self.code = overrides, log, ending, code
        self.looks, self.returncode, self.terminated = looks, None, False
        FakeRun.alive += 1
        FakeRun.most_alive = max(FakeRun.most_alive, FakeRun.alive)

    def poll(self):
        self.looks -= 1
        if self.looks == 0:
            self._end()
        return self.returncode

    def _end(self):
        FakeRun.alive -= 1
        self.returncode = self.code
        run, cfg = RunDir(root=self.log.with_suffix("")), composed(self.overrides)
        run.root.mkdir(parents=True, exist_ok=True)
        dump(cfg, run.config)
        run.status.write_text(json.dumps({"ending": self.ending, "step": cfg.train.steps}))
        self.log.write_text("line\nlast words\n")

    def terminate(self):
        self.terminated = True
        FakeRun.alive -= 1

    def wait(self, timeout=None):
        return 0


class Started(list):
    def __init__(self):
        super().__init__()
        self.how = {}  # name -> how its run ends
        self.processes = {}


@pytest.fixture
def started(monkeypatch):
    """Names of the runs that were started, in order."""

    log = Started()

    def start(overrides, file):
        log.append(file.stem)
        log.processes[file.stem] = FakeRun(overrides, file, **log.how.get(file.stem, {}))
        return log.processes[file.stem]

    FakeRun.alive = FakeRun.most_alive = 0
    monkeypatch.setattr(grid, "train_in_background", start)
    monkeypatch.setattr(grid, "compose", composed)
    monkeypatch.setattr(grid, "_POLL_S", 0)
    return log


def run(cells, out, at_once=2):
    run_grid(cells, out, at_once=at_once, say=lambda text: None)


def test_finished_runs_are_not_run_again(started, tmp_path):
    run([cell("a"), cell("b")], tmp_path)
    assert started == ["a", "b"]
    run([cell("a"), cell("b"), cell("c")], tmp_path)
    assert started == ["a", "b", "c"]


def test_no_more_at_once_than_asked(started, tmp_path):
    run([cell(name) for name in "abc"], tmp_path, at_once=2)
    assert sorted(started) == list("abc")
    assert FakeRun.most_alive == 2


def test_a_shorter_run_goes_on_and_a_longer_one_is_another(started, tmp_path):
    run([cell("a", steps=4)], tmp_path)
    run([cell("a", steps=8)], tmp_path)
    assert started == ["a", "a"]
    with pytest.raises(ConfigError, match=r"train\.steps=8.*needs train\.steps=4"):
        run([cell("a", steps=4)], tmp_path)


def test_another_run_in_the_folder_is_refused_before_anything_starts(started, tmp_path):
    run([cell("a", "schedule.lr=0.001")], tmp_path)
    with pytest.raises(ConfigError, match=r"--out.*schedule\.lr=0\.001.*schedule\.lr=0\.002"):
        run([cell("new"), cell("a", "schedule.lr=0.002")], tmp_path)
    assert started == ["a"]


def test_what_decides_no_loss_may_change(started, tmp_path):
    run([cell("a", "launch.threads_per_rank=1", "train.log_every=1")], tmp_path)
    run([cell("a", "launch.threads_per_rank=2", "train.log_every=2")], tmp_path)
    assert started == ["a"]


def test_a_run_that_was_stopped_is_not_finished(started, tmp_path):
    started.how["a"] = {"ending": "stopped"}
    with pytest.raises(StudyError, match="a was stopped before its end"):
        run([cell("a")], tmp_path)
    started.how.clear()
    run([cell("a")], tmp_path)
    assert started == ["a", "a"]


def test_a_failure_is_told_with_the_runs_last_words_and_stops_the_others(started, tmp_path):
    started.how.update(a={"code": 2}, b={"looks": 1000}, c={"looks": 1000})
    with pytest.raises(StudyError, match=r"(?s)a failed with exit code 2.*last words"):
        run([cell("a"), cell("b"), cell("c")], tmp_path, at_once=3)
    assert started == ["a", "b", "c"]
    assert [process.terminated for process in started.processes.values()] == [False, True, True]
    assert FakeRun.alive == 0


def test_a_wrong_setting_is_told_before_anything_starts(started, tmp_path):
    with pytest.raises(ConfigError, match=r"schedule\.lr"):
        run([cell("a"), cell("b", "schedule.lr=-1")], tmp_path)
    assert started == []
