"""Runs a plan: the reference in this process, every layout in the pool of ranks, a verdict for each."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from conf.errors import RanksFailed
from launch.ranks.environment import clean_environment
from launch.ranks.pool import RankPool
from launch.ranks.rank import Start
from launch.ranks.server import TRAINING
from measure.verify.compare import QUANTITIES, Findings, Precision
from measure.verify.planning.layouts import Layout
from measure.verify.planning.plan import Plan
from measure.verify.reference.plain_run import run_reference
from measure.verify.reference.step_file import GRADIENT, PARAMETER, ReferenceStep
from measure.verify.run_layout import Damage, Task, run_layout
from trainer.device import local_device

Status = Literal["equal", "differs", "failed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """How one layout compares."""

    layout: Layout
    status: Status
    seconds: float
    findings: Findings  # of the replay where there was one; empty after a failure
    ties: int = 0  # tokens near a tie that went the other way, and those behind them in the queue
    replayed: bool = False  # routed by the reference's logits
    message: str = ""  # what failed, or what else is wrong


def verify(plan: Plan, *, say: Callable[[Verdict], None], damage: Damage | None = None) -> list[Verdict]:
    """Run everything; `say` hears each verdict as it falls. `damage` is for tests."""
    on_gpu = local_device(plan.base).type == "cuda"
    environment = clean_environment(os.environ)
    if not on_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # what the server of forks reads when it imports DeepSpeed
        environment |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    preload, precision = (*TRAINING, run_layout.__module__), precision_of(plan)
    with tempfile.TemporaryDirectory(prefix="pointsman-verify-") as name:
        folder = Path(name)
        start: Start = "spawn" if on_gpu else "fork"
        with RankPool(plan.ranks, environment=environment, preload=preload, start=start) as pool:
            dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}[precision]
            run_reference(plan.base, steps=plan.steps, dtype=dtype, device=local_device(plan.base), folder=folder)
            pool.start()
            verdicts: list[Verdict] = []
            for layout in plan.layouts:
                verdicts.append(_verify_layout(plan, layout, pool, folder, precision, damage))
                say(verdicts[-1])
            return verdicts


def precision_of(plan: Plan) -> Precision:
    """The row of limits that applies."""
    return "fp64" if plan.exact else plan.base.train.precision


def _verify_layout(
    plan: Plan, layout: Layout, pool: RankPool, folder: Path, precision: Precision, damage: Damage | None
) -> Verdict:
    began = time.monotonic()

    def found(*, replay: bool) -> Findings:
        cfg = plan.config(layout)
        task = Task(cfg=cfg, folder=str(folder), steps=plan.steps, precision=precision, replay=replay)
        return joined(pool.run(run_layout, task, damage, world=layout.world, timeout_s=plan.timeout_s))

    # Rounding moves whole decisions in bf16, so that there only what follows them compares.
    replay, ties = precision == "bf16", 0
    try:
        findings = found(replay=replay)
        if not replay and begins_with_ties(findings):
            ties, replay = len(findings.excused), True
            findings = found(replay=True)
    except RanksFailed as error:
        seconds = time.monotonic() - began
        return Verdict(layout=layout, status="failed", seconds=seconds, findings=Findings(), message=str(error))
    message = missing(findings, ReferenceStep(folder, 0))
    status: Status = "differs" if findings.first is not None or message else "equal"
    return Verdict(
        layout=layout, status=status, seconds=time.monotonic() - began, findings=findings, ties=ties,
        replayed=replay, message=message,
    )  # fmt: skip


def joined(parts: Sequence[Findings]) -> Findings:
    """What all ranks found."""
    findings = Findings()
    for part in parts:
        findings.join(part)
    return findings


def begins_with_ties(findings: Findings) -> bool:
    """Whether all tokens of the first layer that routed otherwise are excused by ties: what follows may be theirs."""
    if not findings.tokens:
        return False
    step, layer = min(findings.tokens)[:2]
    if findings.first is not None and findings.first.order < (step, QUANTITIES.index("routing"), layer):
        return False  # something differed before
    return all(token in findings.excused for token in findings.tokens if token[:2] == (step, layer))


def missing(findings: Findings, reference: ReferenceStep) -> str:
    """What no rank has compared; empty when every element of every tensor was."""
    for key, parts in findings.covered.items():
        kind, _, name = key.partition("/")
        held, size = sum(math.prod(sizes) for _, sizes in parts), math.prod(reference.shape(kind, name))
        if held != size:
            return f"{kind} of {name}: the ranks hold {held} of {size} elements"
    for kind in (GRADIENT, PARAMETER):
        for name in reference.names(kind):
            if f"{kind}/{name}" not in findings.covered:
                return f"{kind} of {name}: no rank holds any of it"
    return ""
