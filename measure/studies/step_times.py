"""Seconds of one training step of several finished runs, measured in turns so that a busy moment hits all alike."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from conf.derived.layers import layer_names
from conf.safety.writing import write_whole
from data.batch import StepBatch
from data.corpus import Corpus, open_corpus
from data.loader import build_loader
from data.tasks.task import target_kinds
from parallel.engine.protocol import Engine
from parallel.layers.sharding import shard_of, tagged_parameters
from parallel.mesh.axes import Mesh, single_process
from trainer.device import local_device
from trainer.loading import open_run, single_process_config
from trainer.report.metrics import Meter
from trainer.session import build_initialised
from trainer.step import train_step

TIMES = "step_times.json"
WARM_UP_ROUNDS = 2  # first steps allocate optimizer states and buffers


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTimes:
    """Seconds of the measured steps of each run, in the order measured."""

    seconds: dict[str, list[float]]
    where: str  # device, threads, torch: what the numbers hold for

    def median(self, name: str) -> float:
        """Median seconds of a step."""
        return median(self.seconds[name])

    def ratio(self, name: str, to: str) -> float:
        """Median over rounds of one run's step relative to another's of the same round."""
        return median(a / b for a, b in zip(self.seconds[name], self.seconds[to], strict=True))


def step_times(runs: Sequence[Path], mesh: Mesh, *, rounds: int, say: Callable[[str], None]) -> StepTimes:
    """Load every run's newest weights and time `rounds` training steps of each, one run after the other in each round.

    Trained weights, because a balanced router and an untrained one fill experts differently. All runs take the same
    batches. The measured time is what a training run's `perf/step_seconds` is made of, waiting for data left out.
    """
    steppers = {path.name: _Stepper(path, mesh) for path in runs}
    seconds: dict[str, list[float]] = {name: [] for name in steppers}
    for turn in range(WARM_UP_ROUNDS + rounds):
        for name, stepper in steppers.items():
            taken = stepper.step(turn)
            if turn >= WARM_UP_ROUNDS:
                seconds[name].append(taken)
    device = next(iter(steppers.values())).device
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    result = StepTimes(seconds=seconds, where=f"{kind}, torch {torch.__version__}")
    say("step times: " + ", ".join(f"{name} {result.median(name):.3f} s" for name in seconds))
    return result


class _Stepper:
    """One run, ready to take steps from its trained weights."""

    def __init__(self, path: Path, mesh: Mesh) -> None:
        opened = open_run(path, mesh)
        self.mesh = mesh
        self.cfg = single_process_config(opened.cfg, opened.run)
        self.device = local_device(self.cfg)
        self.corpus: Corpus = open_corpus(self.cfg)
        self.engine: Engine = build_initialised(self.cfg, mesh, self.device)
        shards = {name: shard_of(parameter, mesh) for name, parameter, _ in tagged_parameters(self.engine.module)}
        self.engine.load_state(opened.reader.for_engine(shards), weights_only=True)
        self._batches = build_loader(self.corpus, self.cfg, split="train", dp_rank=0, dp_size=1)

    def step(self, turn: int) -> float:
        """Seconds of one training step on batch `turn`; at a rate of 0, so that all turns measure the same model."""
        batch: StepBatch = next(self._batches)
        assert batch.step == turn, f"batch {batch.step} in turn {turn}"
        meter = Meter(
            kinds=target_kinds(self.cfg.data, self.corpus.tokenizer.vocabulary), layer_names=layer_names(self.cfg)
        )
        gc.collect()
        self._wait()
        began = time.perf_counter()
        train_step(self.engine, batch, meter, lr=0.0, stop=False, cfg=self.cfg, mesh=self.mesh, device=self.device)
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def save_times(path: Path, times: StepTimes) -> None:
    """Keep a measurement beside the runs it belongs to."""
    write_whole(path, json.dumps({"seconds": times.seconds, "where": times.where}) + "\n")


def load_times(path: Path, names: Sequence[str]) -> StepTimes | None:
    """A kept measurement of exactly these runs; None where there is none, and it has to be made."""
    if not path.exists():
        return None
    kept = json.loads(path.read_text(encoding="utf-8"))
    if sorted(kept["seconds"]) != sorted(names):
        return None
    return StepTimes(seconds=kept["seconds"], where=kept["where"])


def measured(out: Path, names: Sequence[str], *, rounds: int, say: Callable[[str], None]) -> StepTimes:
    """The kept step times of runs `names` of a study's folder, or new ones, in this process and on one thread."""
    path = out / TIMES
    kept = load_times(path, names)
    if kept is not None and {len(taken) for taken in kept.seconds.values()} == {rounds}:
        say(f"step times are those of {path}; delete it to measure again")
        return kept
    torch.set_num_threads(1)  # as the runs had
    times = step_times([out / name for name in names], single_process(), rounds=rounds, say=say)
    save_times(path, times)
    return times
