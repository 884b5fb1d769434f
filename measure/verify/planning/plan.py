"""What `verify-parallel` will run: the configuration with its noise turned on, the layouts, and whether it fits here.

Plain arithmetic on the configuration; torch is not imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from conf.compose import compose
from conf.derived.estimate import local_params, num_params, padded_vocab_size
from conf.derived.groups import slots_per_token
from conf.derived.layers import is_dense, layers
from conf.derived.windows import stack_length
from conf.errors import ConfigError, ConfigErrors
from conf.reading.convert import raise_all
from conf.schema import Ffn, RunConfig
from measure.verify.planning.covering import Cover, cover_pairs
from measure.verify.planning.layouts import (
    Layout,
    Refused,
    apply,
    complete,
    least_ranks,
    own_layout,
    product,
    read_keys,
    split_valid,
)

DEFAULT_RANKS = 4
MOST_LAYOUTS = 16
ALONE = Layout(tp=1, dp=1, ep=1, etp=1, zero=0, accumulation=1, recompute=False)
# What is turned on where the configuration has it off, so that it is verified too.
DROPOUT, JITTER, EXPERT_DROPOUT, AUX_WEIGHT, Z_WEIGHT = 0.1, 0.01, 0.1, 0.01, 0.1
EPSILON = 1e-5  # of AdamW, at least
DECAY = 1.0  # weight decay, at least: at 0.01 whether a layer takes any is lost in what passes for rounding
CLIP = 0.1  # of the gradient norm, at most, where it is clipped at all: gradients below the limit would not be
LEAST_LR = 1e-3  # below, an update is of the size of the rounding of the weight that it changes
SMALLER = "model.num_encoder_layers=2 model.num_decoder_layers=2 model.vocab_size=1000 train.global_batch=16"
# Forms whose gradient jumps at 0, and the like without.
_WITHOUT_KINK: dict[Ffn, Ffn] = {"relu": "gelu", "gated_relu": "gated_gelu"}
_ONE_RANK = ("parallel.tp=1", "parallel.ep=1", "parallel.etp=null", "launch.nproc=1", "launch.nodes=1",
             "launch.launcher=local")  # fmt: skip
_AXES = ("parallel", "parallel.tp", "parallel.ep", "parallel.etp", "launch.nproc", "launch.nodes")
_FP32 = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Everything that is decided before a process starts."""

    base: RunConfig  # on one rank, without accumulation and recomputation: what the reference runs
    changes: tuple[str, ...]  # what was turned on, in words
    ranks: int
    layouts: tuple[Layout, ...]
    refused: tuple[Refused, ...]
    cover: Cover | None  # of the default set
    steps: int
    exact: bool  # fp64 without the engine
    timeout_s: float  # of one layout

    def config(self, layout: Layout) -> RunConfig:
        """The configuration with one of the layouts."""
        return apply(self.base, layout)


def make_plan(
    overrides: Sequence[str],
    *,
    typed: Sequence[str] = (),
    everything: bool = False,
    ranks: int | None = None,
    steps: int = 3,
    exact: bool = False,
    timeout_s: float = 300.0,
    gpus: int = 0,
) -> Plan:
    """Compose, turn noise on, choose layouts. Raises ConfigError(s) for what the user can mend.

    `typed`: layouts as text, each of which the configuration must be able to run; without any, a pairwise covering
    set, or with `everything` the whole product. `ranks` None: as many as the typed layouts need, GPUs at hand, or
    DEFAULT_RANKS.
    """
    base = _base_config(overrides)
    base, changes = with_noise(base)
    if not exact:
        base, more = conditioned(base)
        changes += more
    keys = [read_keys(text) for text in typed]
    ranks = ranks or max([gpus or DEFAULT_RANKS, *map(least_ranks, keys)])
    own = _own_layout(overrides, base, ranks, typed=bool(keys))
    if exact:
        own = replace(own, zero=0)
        base = replace(base, train=replace(base.train, precision="fp32"))
    cover = None
    if keys:
        wanted = [complete(each, ranks=ranks, own=own) for each in keys]
        layouts, refused = split_valid(base, _distinct(wanted, exact=exact))
        needs = "a layout that this configuration can run"
        raise_all([ConfigError("--layouts", got=no.layout, needs=f"{needs}; {no.reason}") for no in refused])
    else:
        layouts, refused = _all_that_fit(base, ranks, own, exact=exact)
        ranks = max([1, *(layout.world for layout in layouts)])
        if not everything:
            cover = cover_pairs(layouts, limit=MOST_LAYOUTS, first=[own])
            layouts = list(cover.layouts)
    if not layouts:
        shown = "; ".join(f"{each.layout}: {each.reason}" for each in refused[:3])
        raise ConfigError("--layouts", got=shown, needs="a layout that this configuration can run")
    return Plan(
        base=base, changes=tuple(changes), ranks=ranks, layouts=tuple(layouts), refused=tuple(refused), cover=cover,
        steps=steps, exact=exact, timeout_s=timeout_s,
    )  # fmt: skip


def conditioned(cfg: RunConfig) -> tuple[RunConfig, list[str]]:
    """`cfg` whose gradients and updates do not hang on rounding, with every part of the optimizer showing.

    Relu's gradient jumps at 0, and a unit that rounding puts on the other side moves whole gradients: GELU, which
    `parallel` cannot tell from it, has no such kink.
    AdamW's update m / (sqrt(v) + epsilon) of an element whose gradient is far below epsilon is a small multiple of it;
    of one far above, +-1. In between, at epsilon 1e-8, rounding alone decides: measured, 0.06 learning rates in one
    step. Weight decay and clipping are turned up until a layer that goes without one of them differs by more than the
    limit.
    """
    optim, changes = cfg.optim, list[str]()
    if (smooth := _WITHOUT_KINK.get(cfg.model.ffn)) is not None:
        changes.append(f"model.ffn={smooth} (was {cfg.model.ffn})")
        cfg = replace(cfg, model=replace(cfg.model, ffn=smooth))
    wanted = {"weight_decay": max(optim.weight_decay, DECAY), "clip_norm": min(optim.clip_norm, CLIP)}
    if optim.name == "adamw":
        wanted = {"epsilon": max(optim.epsilon, EPSILON)} | wanted
    for name, value in wanted.items():
        if value != getattr(optim, name):
            changes.append(f"optim.{name}={value:g} (was {getattr(optim, name):g})")
    schedule = cfg.schedule
    if schedule.lr < LEAST_LR:
        schedule = replace(schedule, lr=LEAST_LR)
        changes.append(f"schedule.lr={LEAST_LR:g} (was {cfg.schedule.lr:g})")
    return replace(cfg, optim=replace(optim, **wanted), schedule=schedule), changes


def with_noise(cfg: RunConfig) -> tuple[RunConfig, list[str]]:
    """`cfg` with dropout, jitter and both router losses on, and a line for each that was off."""
    wanted: list[tuple[str, str, float]] = [("model", "dropout", DROPOUT)]
    if not is_dense(cfg):
        wanted += [("moe", "jitter", JITTER), ("moe", "expert_dropout", EXPERT_DROPOUT)]
        wanted += [("moe", "aux_loss_weight", AUX_WEIGHT), ("moe", "z_loss_weight", Z_WEIGHT)]
    changes: list[str] = []
    for section, name, value in wanted:
        if getattr(getattr(cfg, section), name) == 0:
            changed = replace(getattr(cfg, section), **{name: value})
            cfg = replace(cfg, **{section: changed})
            changes.append(f"{section}.{name}={value} (was 0)")
    return cfg, changes


def bytes_needed(plan: Plan) -> int:
    """Memory that reference and ranks take together, in bytes: an estimate that is meant to be rather too large."""
    width = 2 if plan.exact else 1
    cfg, total = plan.base, num_params(plan.base.model, plan.base.moe)
    # reference: weights, gradients, two moments, and the file's copy of each while it is written
    reference = 8 * _FP32 * width * total + _activations(plan.base, plan.base.train.global_batch)
    most = 0
    for layout in plan.layouts:
        mine = plan.config(layout)
        states = 7 * _FP32 * width * local_params(mine)  # weights, gradients twice, masters, moments, a gathered copy
        held = _activations(cfg, cfg.train.global_batch // (layout.dp * layout.accumulation))
        most = max(most, layout.world * (states + held))
    return max(reference, most + 2 * _FP32 * total)


def check_memory(plan: Plan, available: int, *, what: str) -> None:
    """Raise ConfigError when the estimate is more than `available` bytes of `what`."""
    needed = bytes_needed(plan)
    if needed > available:
        raise ConfigError(
            "verify-parallel",
            got=f"{plan.base.model.preset} with {num_params(plan.base.model, plan.base.moe) / 1e6:,.0f} M parameters",
            needs=f"about {needed / 2**30:,.1f} GiB for the reference and {plan.ranks} ranks; {what} has "
            f"{available / 2**30:,.1f}",
            hint=f"a smaller model of the same kind, such as {SMALLER}, or fewer --ranks",
        )


def _activations(cfg: RunConfig, rows: int) -> int:
    """Bytes kept for backward of `rows` sequences, roughly: some 24 widths a layer, attention scores, logits."""
    model = cfg.model
    kept = 4.0 * cfg.data.decoder_length * padded_vocab_size(model.vocab_size)
    for layer in layers(model, cfg.moe):
        rows_per_token = slots_per_token(cfg, layer.stack, train=True) if layer.experts else 1.0
        token = 24 * model.d_model + 4 * rows_per_token * model.d_ff
        length = stack_length(cfg.data, layer.stack)
        keys = sum({"self": length, "cross": cfg.data.encoder_length}[kind] for kind in layer.attention)
        kept += length * ((1 + len(layer.attention)) / 2 * token + 4 * model.num_heads * keys)
    return int(_FP32 * rows * kept)


def _base_config(overrides: Sequence[str]) -> RunConfig:
    """The configuration on one rank. Fields that make up a layout are set last, so they win over what was typed."""
    cfg = compose([*overrides, *_ONE_RANK, "train.accumulation=1"])
    return apply(cfg, replace(ALONE, zero=cfg.parallel.zero))


def _own_layout(overrides: Sequence[str], base: RunConfig, ranks: int, *, typed: bool) -> Layout:
    """What the overrides say themselves about the layout, on `ranks` ranks unless they name a number.

    Raises what `train` would raise if axes that were typed as overrides cannot be. Where none were, or where other
    layouts were typed, only the ZeRO stage, accumulation and recomputation are of interest.
    """
    try:
        return own_layout(compose([f"launch.nproc={ranks}", *overrides]))
    except (ConfigError, ConfigErrors):
        if not typed and any(line.partition("=")[0].lstrip("+") in _AXES for line in overrides):
            raise
    try:
        return own_layout(compose([*overrides, *_ONE_RANK]))
    except (ConfigError, ConfigErrors):
        return replace(ALONE, zero=base.parallel.zero)


def _all_that_fit(base: RunConfig, ranks: int, own: Layout, *, exact: bool) -> tuple[list[Layout], list[Refused]]:
    """Every layout of `ranks` ranks and of their divisors that `base` can run, and the others with the reason.

    Of fewer ranks where none keeps more than half of them busy: 7 divide next to nothing, 6 of them do.
    """
    refused: list[Refused] = []
    layouts: list[Layout] = []
    accumulations = sorted({1, 2, own.accumulation})
    for number in range(ranks, 0, -1):
        candidates = product(number, experts=not is_dense(base), accumulations=accumulations)
        candidates = (replace(layout, compile=own.compile) for layout in candidates)
        layouts, left_out = split_valid(base, _distinct(candidates, exact=exact))
        refused += left_out
        if any(2 * layout.world > number for layout in layouts):
            break
    return layouts, list(dict.fromkeys(refused))


def _distinct(layouts: Iterable[Layout], *, exact: bool) -> list[Layout]:
    """Each layout once, in order; without an engine the ZeRO stage makes no difference."""
    found: dict[Layout, None] = {}
    for layout in layouts:
        found[replace(layout, zero=0) if exact else layout] = None
    return list(found)
