"""A few steps of one layout on one rank, every number compared with the reference as soon as it exists."""

from __future__ import annotations

import gc
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from conf.derived.groups import micro_batch_size
from conf.derived.layers import layer_names
from conf.routing.settings import moe_rules
from conf.schema import RunConfig, Stack
from data.batch import StepBatch
from launch.ranks.child import Seat
from measure.verify.compare import LIMITS, OUTPUT_LIMITS, Findings, Ledger, Precision
from measure.verify.observe.batches import step_batch
from measure.verify.observe.numbers import StepNumbers, Tally
from measure.verify.observe.record import GivenLogits, Recorder
from measure.verify.observe.rows import RowFinder
from measure.verify.observe.trace import Trace, Tracer
from measure.verify.reference.step_file import GRADIENT, INITIAL, LOGITS, OUTPUT, PARAMETER, ReferenceStep
from model.build import build_model
from model.compiled import compile_steps
from model.contract import Model
from model.losses import micro_batch_loss
from model.t5.model import SwitchTransformer
from parallel.engine.expert_groups import release_groups
from parallel.engine.protocol import MASTER, Engine, StateTensor, StepResult
from parallel.layers.sharding import Shard, replica_axis, shard_of, spec_of, tagged_parameters
from parallel.mesh import collectives
from parallel.mesh.axes import Mesh
from parallel.mesh.groups import meeting
from parallel.optim.parameters import is_counted, replica_axes
from parallel.rng import NoiseKey
from trainer.device import local_device, make_repeatable
from trainer.session import build_initialised
from trainer.step import count_tokens, loss_scale, to_device, train_step

NO_TIE = -1.0  # in a replay logits are equal bit by bit, and nothing is left to rounding
ENTERED = "the global batch as it enters backward"


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One layout to run."""

    cfg: RunConfig  # with the layout
    folder: str  # of the reference
    steps: int
    precision: Precision
    replay: bool  # route by the reference's logits


@dataclass(frozen=True, kw_only=True, slots=True)
class RankRun:
    """What a test may damage before the first step."""

    cfg: RunConfig
    mesh: Mesh
    module: SwitchTransformer
    engine: Engine | None  # None in an fp64 run


Damage = Callable[[RankRun], AbstractContextManager[None]]  # for tests: entered before the first step, left after all


def run_layout(seat: Seat, task: Task, damage: Damage | None) -> Findings:
    """Join the other ranks, run, compare, and leave nothing behind for the next layout. Collective."""
    device = local_device(task.cfg)
    make_repeatable(device)  # as in training: a replay must be the same run
    with meeting(task.cfg.parallel, **seat._asdict()) as mesh:
        try:
            findings = compare_layout(task, mesh, device, damage)
            collectives.barrier(mesh.control, what="end of a layout")
            return findings
        finally:
            gc.collect()  # engines hold cycles, and their memory must not stay for the next layout
            release_groups()


def compare_layout(task: Task, mesh: Mesh, device: torch.device, damage: Damage | None) -> Findings:
    """Run the steps of a layout and compare them. Collective."""
    runner = _ExactRunner(task, mesh, device) if task.precision == "fp64" else _EngineRunner(task, mesh, device)
    run = RankRun(cfg=task.cfg, mesh=mesh, module=runner.module, engine=runner.engine)
    with damage(run) if damage else nullcontext():
        runner.compare_initial()
        for step in range(task.steps):
            runner.step(step)
    return runner.ledger.findings


class _Runner(ABC):
    """What both kinds of run share: the reference of the present step and the ledger."""

    def __init__(self, task: Task, mesh: Mesh, device: torch.device, module: nn.Module, engine: Engine | None) -> None:
        assert isinstance(module, SwitchTransformer)
        self.engine = engine
        self.task, self.cfg, self.mesh, self.device, self.module = task, task.cfg, mesh, device, module
        self.ledger = Ledger(
            LIMITS[task.precision],
            tie=NO_TIE if task.replay else None,
            output_limit=OUTPUT_LIMITS.get(task.precision, math.inf),
        )
        self.reference: ReferenceStep | None = None
        self.at_step = 0
        given: GivenLogits | None = self._given if task.replay else None
        self.finder = RowFinder(task.cfg)
        module.register_forward_pre_hook(self._begin, with_kwargs=True)  # before those that ask for rows
        self.recorder = Recorder(module, task.cfg, mesh, given, self.finder.rows)
        self.tracer = Tracer(module, self.finder.rows)
        self.parameters = {name: parameter for name, parameter, _ in tagged_parameters(module)}
        self.shards = {name: shard_of(parameter, mesh) for name, parameter in self.parameters.items()}
        self.positions = {name: i for i, name in enumerate(self.parameters)}
        self.layers = {name: i for i, name in enumerate(layer_names(task.cfg))}

    def compare_initial(self) -> None:
        """The weights on every rank are the drawn ones, rounded to the dtype they compute in."""
        reference = ReferenceStep(Path(self.task.folder), INITIAL)
        for name, parameter in self.parameters.items():
            self.compare_exactly(name, parameter, reference.part(PARAMETER, name, self.shards[name].slices), INITIAL)

    def compare_exactly(self, name: str, ours: Tensor, theirs: Tensor, step: int) -> None:
        """Weights that must be equal to the last bit."""
        lr, at = self.cfg.schedule.lr, self.positions[name]
        theirs = theirs.to(ours.dtype)
        self.ledger.tensor("parameter", ours, theirs, lr, step=step, where=name, at=at, limit=0.0)

    @abstractmethod
    def step(self, step: int) -> None:
        """Run step `step` and compare it."""

    def open(self, step: int) -> ReferenceStep:
        """Read the reference of a step; replayed logits come from it."""
        self.reference = ReferenceStep(Path(self.task.folder), step)
        self.finder.open(step)
        self.at_step = step
        return self.reference

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self.finder.begin(*args)
        wrong = self.finder.wrong(kwargs["noise"])
        if wrong:
            self.ledger.key(", ".join(wrong), step=self.at_step)

    def compare_forward(self, step: int, reference: ReferenceStep, ours: StepNumbers) -> None:
        """Outputs of sublayers, kept sets and losses."""
        for trace in self.tracer.take():
            self._compare_output(step, reference, trace)
        for decision in self.recorder.take():
            stack: Stack = "encoder" if decision.layer.startswith("encoder") else "decoder"
            rules, at = moe_rules(self.cfg.moe, stack), self.layers[decision.layer]
            self.ledger.routing(
                decision, reference, step=step, at=at, choices=rules.choices, text_order=not rules.row.looks_ahead
            )
        theirs = reference.numbers
        for quantity in ("loss", "aux", "z"):
            # Behind the layers in order: what differs in one of them is better named by its layer.
            at = 0 if quantity == "loss" else len(self.layers)
            self.ledger.number(quantity, getattr(ours, quantity), getattr(theirs, quantity), step=step, at=at)
        self.ledger.number("loss", ours.entered, theirs.entered, step=step, where=ENTERED, at=1)
        for name, at in self.layers.items():
            self.ledger.number("aux", ours.layer_aux[name], theirs.layer_aux[name], step=step, where=name, at=at)
            self.ledger.number("z", ours.layer_z[name], theirs.layer_z[name], step=step, where=name, at=at)

    def compare_gradients(self, step: int, reference: ReferenceStep, gradients: dict[str, Tensor]) -> None:
        """Every parameter's; what this rank holds is noted, so that nobody's share is missing."""
        assert gradients.keys() == self.parameters.keys(), "the engine gives every parameter's gradient"
        for name, gradient in gradients.items():
            shard = self.shards[name]
            theirs = reference.part(GRADIENT, name, shard.slices)
            scale = reference.largest(GRADIENT, name)
            at = -self.positions[name]  # backward comes to the last first: what is near the loss is near the cause
            self.ledger.tensor("gradient", gradient, theirs, scale, step=step, where=name, at=at)
            self.cover(f"{GRADIENT}/{name}", shard, None)

    def _compare_output(self, step: int, reference: ReferenceStep, trace: Trace) -> None:
        place, where = trace.place, trace.name
        if place not in reference.places:  # a call more than the forward of the reference has
            place, where = f"{trace.name}#0", f"{trace.name}, recomputed"
        at, scale = reference.places.index(place), reference.largest(OUTPUT, place)
        theirs = reference.whole(OUTPUT, place)[trace.rows_B]
        self.ledger.output(trace.prints_BP, theirs, scale, step=step, where=where, at=at)

    def cover(self, key: str, shard: Shard, dims: tuple[int, ...] | None) -> None:
        """Note a rectangle of a logical tensor as compared."""
        kept = range(len(shard.local_shape)) if dims is None else dims
        part = tuple(shard.offsets[d] for d in kept), tuple(shard.local_shape[d] for d in kept)
        self.ledger.findings.covered.setdefault(key, set()).add(part)

    def _given(self, layer: str, groups: Tensor) -> Tensor:
        assert self.reference is not None
        return self.reference.whole(LOGITS, layer)[groups.cpu()].to(self.device)


class _BeforeStep:
    """An engine that lets someone look at its gradients before it takes its step."""

    def __init__(self, engine: Engine, look: Callable[[], None]) -> None:
        self._engine, self._look = engine, look

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def step(self, lr: float) -> StepResult:
        self._look()
        return self._engine.step(lr)


class _EngineRunner(_Runner):
    """The trainer's own step with the engine of the layout."""

    def __init__(self, task: Task, mesh: Mesh, device: torch.device) -> None:
        engine = build_initialised(task.cfg, mesh, device)
        super().__init__(task, mesh, device, engine.module, engine)

    def compare_initial(self) -> None:
        """The masters as well."""
        super().compare_initial()
        assert self.engine is not None
        reference = ReferenceStep(Path(self.task.folder), INITIAL)
        for state in self.engine.read_state():
            if state.kind == MASTER:
                theirs = reference.part(PARAMETER, state.name, self.shards[state.name].slices)
                self.compare_exactly(state.name, state.value, theirs, INITIAL)

    @override
    def step(self, step: int) -> None:
        engine, reference = self.engine, self.open(step)
        assert engine is not None
        batch = step_batch(self.cfg, step, dp_rank=self.mesh.dp.rank)
        tally = Tally(self.cfg)

        def look() -> None:
            self.compare_forward(step, reference, tally.numbers(self.mesh))
            gradients = engine.gradients()
            self.compare_gradients(step, reference, gradients)
            squares.update(self._squares(gradients))

        squares: dict[str, float] = {}
        lr, watched = self.cfg.schedule.lr, cast("Engine[Model]", _BeforeStep(engine, look))
        norm = train_step(watched, batch, tally, lr=lr, stop=False, cfg=self.cfg, mesh=self.mesh, device=self.device)[1]
        self.ledger.number("norm", norm, reference.norm, step=step)
        if self.task.precision == "bf16":
            self._compare_norms(step, reference, squares, norm)
        if self.task.precision == "fp32":
            for name, parameter in self.parameters.items():  # the copy on every rank, not only its owner's
                self._compare_parameter(step, reference, name, parameter)
        else:
            self._compare_copies(step)
        for state in engine.read_state():
            self._compare_state(step, reference, state)

    def _squares(self, gradients: dict[str, Tensor]) -> dict[str, float]:
        """Sum of squares of each parameter's gradient. Copies count in proportion: none has to be singled out."""
        shares: list[Tensor] = []
        for name, gradient in gradients.items():
            copies = self.mesh.world.size * gradient.numel() / math.prod(self.shards[name].global_shape)
            shares.append(gradient.double().square().sum() / copies)
        summed = collectives.all_reduce(torch.stack(shares), self.mesh.world)
        return dict(zip(gradients, summed.tolist(), strict=True))

    def _compare_norms(self, step: int, reference: ReferenceStep, squares: dict[str, float], norm: float) -> None:
        """In bf16, where rounding moves single elements by their own size: the norm of this layout's own gradients, and
        the norms of experts and of the rest."""
        own = math.sqrt(sum(squares.values()))
        limit = LIMITS["fp32"]["gradient"]
        self.ledger.note("norm", abs(norm / own - 1), step=step, where="its own gradients", limit=limit)
        for experts, where in ((True, "experts"), (False, "all but experts")):
            names = [name for name, p in self.parameters.items() if spec_of(p).is_expert == experts]
            ours, theirs = (math.sqrt(sum(of[name] for name in names)) for of in (squares, reference.squares))
            self.ledger.number("norm", ours, theirs, step=step, where=where, at=1)

    def _compare_parameter(self, step: int, reference: ReferenceStep, name: str, value: Tensor) -> None:
        theirs = reference.part(PARAMETER, name, self.shards[name].slices)
        lr, at = self.cfg.schedule.lr, self.positions[name]
        self.ledger.tensor("parameter", value, theirs, lr, step=step, where=name, at=at)

    def _compare_copies(self, step: int) -> None:
        """That all copies of a weight are equal; `_compare_state` compares the owner's with the rounded master."""
        for name, parameter in self.parameters.items():
            ours = parameter.detach().float()
            for axis in replica_axes(parameter, self.mesh):
                for op in ("max", "min"):
                    self.compare_exactly(name, ours, collectives.all_reduce(ours.clone(), axis, op), step)

    def _compare_state(self, step: int, reference: ReferenceStep, state: StateTensor) -> None:
        shard = self.shards[state.name]
        self.cover(f"{PARAMETER if state.kind == MASTER else state.kind}/{state.name}", shard, state.dims)
        if state.kind == MASTER:
            self._compare_parameter(step, reference, state.name, state.value)
            if self.task.precision == "bf16":
                self.compare_exactly(state.name, self.parameters[state.name], state.value, step)
            return
        slices = shard.slices if state.dims is None else tuple(shard.slices[d] for d in state.dims)
        theirs = reference.part(state.kind, state.name, slices)
        scale, at = reference.largest(state.kind, state.name), self.positions[state.name]
        where = f"{state.name} ({state.kind})"
        self.ledger.tensor("moment", state.value, theirs, scale, step=step, where=where, at=at)


class _ExactRunner(_Runner):
    """The fp64 model without an engine: backward, and the sums over ranks that an engine must come down to."""

    def __init__(self, task: Task, mesh: Mesh, device: torch.device) -> None:
        module = build_model(task.cfg, mesh, device=device, dtype=torch.float64)
        compile_steps(module, task.cfg, device)
        super().__init__(task, mesh, device, module, None)

    @override
    def step(self, step: int) -> None:
        # Weights stay as they are; steps differ in batch and noise.
        reference = self.open(step)
        batch = step_batch(self.cfg, step, dp_rank=self.mesh.dp.rank)
        tally = Tally(self.cfg)
        self._run_micro_batches(batch, tally)
        self.compare_forward(step, reference, tally.numbers(self.mesh))
        gradients: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.contiguous()
            gradients[name] = collectives.all_reduce(grad, replica_axis(parameter, self.mesh)) / self.mesh.dp.size
        self.compare_gradients(step, reference, gradients)
        counted = [gradients[n].square().sum() for n, p in self.parameters.items() if is_counted(p, self.mesh)]
        total = torch.stack([torch.zeros((), dtype=torch.float64, device=self.device), *counted]).sum().reshape(1)
        collectives.all_reduce(total, self.mesh.world)
        self.ledger.number("norm", float(total.sqrt()), reference.norm, step=step)
        self.module.zero_grad()

    def _run_micro_batches(self, batch: StepBatch, tally: Tally) -> None:
        counts = count_tokens(batch, self.mesh)
        scale = loss_scale(self.module, counts, replicas=self.mesh.dp.size * len(batch.micro))
        for micro in batch.micro:
            assert len(micro.rows_B) == micro_batch_size(self.cfg)
            tensors = to_device(micro, self.device)
            noise = NoiseKey(seed=self.cfg.seed, step=batch.step, rows_B=tensors.rows_B)
            output = self.module(tensors.inputs_BL, tensors.targets_BT, mode="train", noise=noise)
            parts = micro_batch_loss(output, scale, self.cfg.moe)
            (parts.total / len(batch.micro)).backward()
            tally.add(output, tensors.targets_BT, parts)
