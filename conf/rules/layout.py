"""Checks of how ranks share the work: axes of the world, what they cut, and whole routing groups on every rank.

The rules are those of docs/adr/001 (groups) and docs/adr/004 (axes).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from conf.derived.estimate import VOCAB_MULTIPLE, padded_vocab_size
from conf.derived.groups import micro_batch_size
from conf.derived.layers import is_dense
from conf.derived.topology import topology, world_size
from conf.errors import ConfigError
from conf.rules.data import check_lanes
from conf.rules.ranges import divisors, listed, nearest
from conf.schema import RawRunConfig, RunConfig

Problems = Iterator[ConfigError]


def check_ranks(cfg: RunConfig) -> Problems:
    """tp divides the world; etp is tp or 1; expert parallelism divides the ranks that are left to it."""
    world, tp, ep, etp = world_size(cfg), cfg.parallel.tp, cfg.parallel.ep, cfg.parallel.etp
    if world % tp:
        yield ConfigError(
            "parallel.tp",
            got=tp,
            needs=f"a divisor of the {world} ranks: {listed(divisors(world))}",
            hint=f"parallel.tp={nearest(tp, divisors(world))}, or launch.nproc={_ranks_per_node(cfg, tp * ep)}",
        )
        return
    if etp not in (1, tp):
        hint = "parallel.etp=1" if tp == 1 else f"parallel.etp={tp}, or parallel.etp=1"
        yield ConfigError("parallel.etp", got=etp, needs=f"1 or tp = {tp}", hint=hint)
        return
    if is_dense(cfg):
        if ep > 1:
            yield ConfigError(
                "parallel.ep", got=ep, needs="1: a dense model has no experts to spread", hint="parallel.ep=1"
            )
        return
    across = world // etp
    if across % ep:
        legal = [n for n in divisors(across) if cfg.moe.num_experts % n == 0]
        yield ConfigError(
            "parallel.ep",
            got=ep,
            needs=f"a divisor of world / etp = {across}: {listed(divisors(across))}",
            hint=f"parallel.ep={nearest(ep, legal)}, or launch.nproc={_ranks_per_node(cfg, ep * etp)}",
        )


def _ranks_per_node(cfg: RunConfig, ranks: int) -> int:
    """The smallest launch.nproc, at least the present one, at which `ranks` divides the world."""
    step = ranks // math.gcd(ranks, cfg.launch.nodes)
    return -(-cfg.launch.nproc // step) * step


def check_shards(cfg: RunConfig) -> Problems:
    """Heads, feed-forward columns, the padded vocabulary: each is cut into equal parts by tp."""
    model, tp = cfg.model, cfg.parallel.tp
    rows = padded_vocab_size(model.vocab_size)
    steps = {"vocab_size": math.lcm(tp, VOCAB_MULTIPLE)}  # rows are padded, so that other sizes would end elsewhere
    for field, size in (("num_heads", model.num_heads), ("d_ff", model.d_ff), ("vocab_size", rows)):
        if size % tp:
            step = steps.get(field, tp)
            legal = [n for n in divisors(world_size(cfg)) if size % n == 0]
            built = " (padded)" if field == "vocab_size" else ""
            yield ConfigError(
                f"model.{field}",
                got=size,
                needs=f"a multiple{built} of parallel.tp = {tp}",
                hint=f"model.{field}={-(-size // step) * step}, or parallel.tp={nearest(tp, legal)}",
            )


def check_experts(cfg: RunConfig) -> Problems:
    """Every rank of the expert axis holds equally many experts."""
    experts, ep = cfg.moe.num_experts, cfg.parallel.ep
    if not is_dense(cfg) and experts % ep:
        axes = topology(cfg)
        legal = [n for n in divisors(experts) if axes.world // axes.etp % n == 0]
        yield ConfigError(
            "moe.num_experts",
            got=experts,
            needs=f"a multiple of parallel.ep = {ep}",
            hint=f"moe.num_experts={-(-experts // ep) * ep}, or parallel.ep={nearest(ep, legal)}",
        )


def check_batch(cfg: RunConfig, raw: RawRunConfig) -> Problems:
    """Equal micro-batches on every rank, each of whole routing groups."""
    yield from check_lanes(cfg)
    batch, parts = cfg.train.global_batch, topology(cfg).dp * cfg.train.accumulation
    whole = parts if is_dense(cfg) else parts * _sharers(cfg) * (raw.moe.group_sequences or 1)
    if batch % parts:
        yield ConfigError(
            "train.global_batch",
            got=batch,
            needs=f"a multiple of data parallelism x accumulation = {parts}",
            hint=f"train.global_batch={-(-batch // whole) * whole}",
        )
    elif not is_dense(cfg):
        yield from _check_groups(cfg, raw.moe.group_sequences)


def _sharers(cfg: RunConfig) -> int:
    """Tensor ranks that share the groups of a micro-batch: those of experts that tensor parallelism does not cut."""
    axes = topology(cfg)
    return axes.tp // axes.etp


def _check_groups(cfg: RunConfig, asked: int | None) -> Problems:
    micro_batch = micro_batch_size(cfg)
    sharers = _sharers(cfg)
    if micro_batch % sharers:
        parts = topology(cfg).dp * cfg.train.accumulation * sharers * (asked or 1)
        yield ConfigError(
            "train.global_batch",
            got=cfg.train.global_batch,
            needs=f"micro-batches ({micro_batch} sequences) that {sharers} tensor ranks can share (etp=1)",
            hint=f"train.global_batch={-(-cfg.train.global_batch // parts) * parts}",
        )
        return
    held = micro_batch // sharers
    group = cfg.moe.group_sequences
    if held % group:
        larger = cfg.train.global_batch // held * (-(-held // group) * group)
        yield ConfigError(
            "moe.group_sequences",
            got=asked or f"{group} (by the rule of {cfg.moe.semantics})",
            needs=f"a divisor of the {held} sequences a rank routes at once: {listed(divisors(held))}",
            hint=f"moe.group_sequences={nearest(group, divisors(held))}, or train.global_batch={larger}",
        )
