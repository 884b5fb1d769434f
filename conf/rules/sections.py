"""Ranges of single fields, one function for each section of a configuration; `data` has a file of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator

from conf.errors import ConfigError
from conf.launchers import LAUNCHERS
from conf.optimizers import OPTIMIZERS
from conf.routing.legal import check_router
from conf.rules.data import check_data
from conf.rules.ranges import at_least, one_of, positive, share
from conf.safety import shell
from conf.safety.redact import REDACTED, redact_text
from conf.schema import (
    LaunchConfig,
    LoggingConfig,
    OptimConfig,
    RawModelConfig,
    RawMoeConfig,
    RawRunConfig,
    RawTrainConfig,
)

Problems = Iterator[ConfigError]
NOTICE_SECONDS = 180  # before the end of a job's time Slurm tells its ranks to save and end
_EARLY_SECONDS = 60  # by which Slurm may do so too early
_LONGEST_NAME = 200
_NAME = re.compile(r"[\w][\w.+=@ -]*")


def check_run(cfg: RawRunConfig) -> Problems:
    """Name, folder and seed."""
    if cfg.name is not None and _NAME.fullmatch(cfg.name) is None:
        clean = re.sub(r"[^\w.+=@-]+", "-", cfg.name).strip("-.") or "run"
        yield ConfigError(
            "name", got=cfg.name, needs="a folder's name: no path separators, no leading dot", hint=f"name={clean}"
        )
    elif cfg.name is not None and len(cfg.name.encode()) > _LONGEST_NAME:
        needs = f"at most {_LONGEST_NAME} bytes: files are called so, with more behind it"
        yield ConfigError("name", got=cfg.name, needs=needs, hint="name=run")
    if not cfg.runs_dir:
        yield ConfigError("runs_dir", got="", needs="a folder", hint="runs_dir=runs")
    for field, text in (("name", cfg.name or ""), ("runs_dir", cfg.runs_dir)):
        if redact_text(text) != text:
            yield ConfigError(field, got=REDACTED, needs="no secret: a folder is called so", hint="another name")
    yield from at_least("seed", cfg.seed, 0)


def check_fields(cfg: RawRunConfig) -> Problems:
    """Ranges of single fields, section by section."""
    yield from check_model(cfg.model)
    yield from check_moe(cfg.moe)
    yield from check_data(cfg.data)
    for name in ("tp", "ep"):
        yield from at_least(f"parallel.{name}", getattr(cfg.parallel, name), 1)
    yield from positive("parallel.timeout_s", cfg.parallel.timeout_s, 600.0)
    yield from check_optim(cfg.optim)
    yield from positive("schedule.lr", cfg.schedule.lr, 0.001)
    if cfg.schedule.warmup_steps is not None:
        yield from at_least("schedule.warmup_steps", cfg.schedule.warmup_steps, 0)
    yield from share("schedule.min_lr_ratio", cfg.schedule.min_lr_ratio, 0.1, upper="included")
    yield from share("schedule.decay_fraction", cfg.schedule.decay_fraction, 0.2, upper="included")
    yield from check_train(cfg.train)
    yield from check_logging(cfg.logging)
    yield from check_launch(cfg.launch)


def check_model(model: RawModelConfig) -> Problems:
    """Sizes and rates of the model."""
    sizes = "vocab_size d_model d_ff d_kv num_heads num_encoder_layers num_decoder_layers relative_max_distance"
    for name in sizes.split():
        yield from at_least(f"model.{name}", getattr(model, name), 1)
    if _NAME.fullmatch(model.preset) is None:
        needs = "a folder's name, as name does: a run without one is called so"
        yield ConfigError("model.preset", got=model.preset, needs=needs, hint="model.preset=mine")
    buckets = model.relative_buckets
    if buckets < 4:
        yield ConfigError("model.relative_buckets", got=buckets, needs="at least 4", hint="model.relative_buckets=32")
    elif 1 <= model.relative_max_distance <= buckets // 2:
        # half of the buckets (of a direction) are exact; the rest grow logarithmically up to the largest distance
        yield ConfigError(
            "model.relative_max_distance",
            got=model.relative_max_distance,
            needs=f"more than relative_buckets / 2 = {buckets // 2}",
            hint=f"model.relative_max_distance={4 * buckets}",
        )
    if model.tie_embeddings and not model.share_embeddings:
        yield ConfigError(
            "model.share_embeddings",
            got=False,
            needs="true with model.tie_embeddings=true: the output matrix is tied to the one embedding of both stacks",
            hint="model.tie_embeddings=false",
        )
    for name in ("dropout", "attention_dropout"):
        yield from share(f"model.{name}", getattr(model, name), 0.1)
    for name, usual in (("norm_epsilon", 1e-6), ("init_scale", 0.1)):
        yield from positive(f"model.{name}", getattr(model, name), usual)


def check_moe(moe: RawMoeConfig) -> Problems:
    """Sizes, rates and weights of the experts."""
    for name, least in (("num_experts", 1), ("sparse_every", 0), ("min_expert_capacity", 1)):
        yield from at_least(f"moe.{name}", getattr(moe, name), least)
    for name, least in (("group_sequences", 1), ("decoder_sparse_every", 0)):
        if getattr(moe, name) is not None:
            yield from at_least(f"moe.{name}", getattr(moe, name), least)
    for name, usual in (("capacity_factor", 1.25), ("eval_capacity_factor", 2.0)):
        yield from positive(f"moe.{name}", getattr(moe, name), usual)
    for name in ("jitter", "expert_dropout"):
        yield from share(f"moe.{name}", getattr(moe, name), 0.01)
    for name in ("aux_loss_weight", "z_loss_weight"):
        yield from at_least(f"moe.{name}", getattr(moe, name), 0)
    yield from check_router(moe)


def check_optim(optim: OptimConfig) -> Problems:
    """Name and ranges of the optimizer."""
    yield from one_of("optim.name", optim.name, OPTIMIZERS)
    for name, usual in (("beta1", 0.9), ("beta2", 0.98)):
        yield from share(f"optim.{name}", getattr(optim, name), usual)
    for name, usual in (("epsilon", 1e-8), ("decay_rate", 0.8), ("clip_threshold", 1.0)):
        yield from positive(f"optim.{name}", getattr(optim, name), usual)
    for name in ("weight_decay", "clip_norm"):
        yield from at_least(f"optim.{name}", getattr(optim, name), 0)


def check_train(train: RawTrainConfig) -> Problems:
    """Lengths and intervals of the loop."""
    if train.steps is None and train.tokens is None:
        yield ConfigError("train.steps", got=None, needs="an end: steps, tokens or both", hint="train.steps=1000")
    for name in ("global_batch", "accumulation", "log_every", "eval_batches", "keep_last"):
        yield from at_least(f"train.{name}", getattr(train, name), 1)
    for name, least in (("steps", 1), ("tokens", 1), ("eval_every", 0), ("save_every", 0), ("keep_every", 1)):
        value = getattr(train, name)
        if value is not None:
            yield from at_least(f"train.{name}", value, least)
    yield from at_least("train.fill_samples", train.fill_samples, 0)


def check_logging(logging: LoggingConfig) -> Problems:
    """Names that W&B accepts."""
    project = logging.wandb_project
    if project is not None and (not project or set(project) & set("/\\#?%:")):
        yield ConfigError(
            "logging.wandb_project",
            got=project,
            needs="a name without / \\ # ? % :",
            hint="logging.wandb_project=pointsman",
        )


def check_launch(launch: LaunchConfig) -> Problems:
    """Counts of processes, the rendezvous, the time limit."""
    yield from one_of("launch.launcher", launch.launcher, LAUNCHERS)
    for name in ("nproc", "nodes"):
        yield from at_least(f"launch.{name}", getattr(launch, name), 1)
    for name in ("threads_per_rank", "slurm_gpus_per_node", "slurm_cpus_per_task"):
        if getattr(launch, name) is not None:
            yield from at_least(f"launch.{name}", getattr(launch, name), 1)
    for name in ("slurm_partition", "slurm_account", "slurm_container"):
        if getattr(launch, name) == "":
            yield ConfigError(f"launch.{name}", got="", needs="a name, or null for none", hint=f"launch.{name}=null")
    yield from at_least("launch.max_restarts", launch.max_restarts, 0)
    host, _, port = (launch.rdzv_endpoint or "").rpartition(":")
    if launch.rdzv_endpoint is not None and not (host and re.fullmatch(r"[0-9]{1,5}", port) and int(port) < 2**16):
        host = launch.rdzv_endpoint.partition(":")[0] or "node0"
        yield ConfigError(
            "launch.rdzv_endpoint",
            got=launch.rdzv_endpoint,
            needs="host:port",
            hint=shell.word(f"launch.rdzv_endpoint={host}:29500"),
        )
    yield from _check_time(launch.slurm_time)


def _check_time(text: str) -> Problems:
    seconds = slurm_seconds(text)
    needs = "a time limit such as 24:00:00 or 2-12:00:00"
    if seconds is not None:
        if seconds == 0 or seconds > NOTICE_SECONDS + _EARLY_SECONDS:
            return
        needs = (
            f"more than {NOTICE_SECONDS + _EARLY_SECONDS} seconds, or 0 for no limit: the notice to save and end comes "
            f"{NOTICE_SECONDS} seconds before the end, and up to {_EARLY_SECONDS} seconds too early"
        )
    yield ConfigError("launch.slurm_time", got=text, needs=needs, hint="launch.slurm_time=24:00:00")


def slurm_seconds(text: str) -> int | None:
    """Seconds of a limit as `sbatch --time` takes it: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S; None for anything else."""
    match = re.fullmatch(r"(?:([0-9]{1,6})-)?([0-9]{1,9})(?::([0-9]{1,9}))?(?::([0-9]{1,9}))?", text)
    if match is None:
        return None
    days, *parts = (int(part) for part in match.groups(default="0"))
    if match[1] is None and match[4] is None:  # then minutes come first
        parts = [0, *parts]
    return days * 86_400 + parts[0] * 3600 + parts[1] * 60 + parts[2]
