"""Checks a configuration before torch is imported: in which order rules run, and those that connect two sections.

Each check yields a `ConfigError` per problem. Ranges of single fields come first; rules that connect fields (which
divide by them) run once those hold, so one run of the command lists all problems of one kind.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from conf.derived.derive import resolve
from conf.derived.layers import stacks
from conf.derived.topology import world_size
from conf.errors import ConfigError
from conf.optimizers import OPTIMIZERS
from conf.reading.convert import raise_all
from conf.rules.bounds import check_bounds, check_size
from conf.rules.data import check_task, check_vocabulary
from conf.rules.files import check_files
from conf.rules.layout import check_batch, check_experts, check_ranks, check_shards
from conf.rules.sections import check_fields, check_run
from conf.schema import RawRunConfig, RunConfig, Stack

Files = Literal["checked", "unchecked"]
Problems = Iterator[ConfigError]


def validate(raw: RawRunConfig, *, files: Files = "checked") -> RunConfig:
    """`raw` with every derived field filled, which fulfils all rules. `files`: whether paths must exist here.

    Raises `ConfigError`, or `ConfigErrors` for several problems.
    """
    raise_all([*check_bounds(raw), *check_run(raw), *check_fields(raw)])
    cfg = resolve(raw)
    problems = [*check_size(cfg), *check_ranks(cfg)]
    if not problems:  # everything below divides by the sizes of the axes
        problems += [*check_shards(cfg), *check_experts(cfg), *check_batch(cfg, raw)]
    problems += [*check_sparse(cfg, raw), *check_vocabulary(cfg), *check_task(cfg), *check_schedule(cfg)]
    if files == "checked":
        problems += check_files(raw)
    raise_all(problems)
    return cfg


def check_world(cfg: RawRunConfig, ranks: int) -> None:
    """Raise `ConfigError` unless `ranks`, the number a launcher has started, is the number configured."""
    if world_size(cfg) != ranks:
        raise ConfigError(
            "launch.nproc",
            got=f"{cfg.launch.nproc} x {cfg.launch.nodes} nodes",
            needs=f"{ranks} ranks in all, which is what the launcher started",
            hint="leaving launch.nproc and launch.nodes out, or starting that many ranks",
        )


def check_sparse(cfg: RunConfig, raw: RawRunConfig) -> Problems:
    """A stack lacks expert layers only where 0 asks for that."""
    every: dict[Stack, int] = {"encoder": cfg.moe.sparse_every, "decoder": cfg.moe.decoder_sparse_every}
    depths: dict[Stack, int] = {
        stack: len(plan)
        for stack, plan in stacks(cfg.model, cfg.moe).items()
        if not any(layer.experts for layer in plan) and every[stack]
    }
    if not depths:
        return
    stack = min(depths, key=lambda name: depths[name])
    own = stack == "decoder" and raw.moe.decoder_sparse_every is not None
    field = "moe.decoder_sparse_every" if own else "moe.sparse_every"
    yield ConfigError(
        field,
        got=every[stack],
        needs=f"1 to {depths[stack]}, the layers of the {stack}: none of them would hold experts",
        hint=f"{field}={depths[stack]}, or {field}=0 for none",
    )


def check_schedule(cfg: RunConfig) -> Problems:
    """Warm-up fits the run, the ends that schedules need exist, the optimizer has what it is asked for."""
    steps, schedule = cfg.train.steps, cfg.schedule
    if steps is not None and schedule.warmup_steps > steps and schedule.warmup_shape == "linear":
        yield ConfigError(
            "schedule.warmup_steps",
            got=schedule.warmup_steps,
            needs=f"at most train.steps = {steps}",
            hint=f"schedule.warmup_steps={steps // 10}",
        )
    name, row = cfg.optim.name, OPTIMIZERS[cfg.optim.name]
    if cfg.parallel.zero not in row.zero:
        legal = " or ".join(map(str, row.zero))
        yield ConfigError(
            "parallel.zero",
            got=cfg.parallel.zero,
            needs=f"{legal} with {name}: {row.zero_reason}",
            hint=f"parallel.zero={row.zero[-1]}",
        )
    if cfg.optim.beta1 and not row.first_moment:
        yield ConfigError(
            "optim.beta1",
            got=cfg.optim.beta1,
            needs=f"0 with {name}, which has no first moment here",
            hint=f"optim={name}, the preset, or optim.beta1=0",
        )
    if cfg.train.resume == "required" and cfg.name is None:
        yield ConfigError("name", got=None, needs="the run to resume", hint="name=NAME, a folder below runs_dir")
