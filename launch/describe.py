"""The text of `pointsman config`: what follows from the composed configuration, then the configuration."""

from __future__ import annotations

from conf.compose import to_yaml
from conf.derived.estimate import (
    Params,
    count_params,
    flops_per_sequence,
    flops_per_token,
    local_params,
    num_active_params,
)
from conf.derived.groups import expert_capacity, group_tokens, micro_batch_size, slots_per_token
from conf.derived.layers import is_dense, stacks
from conf.derived.topology import topology
from conf.schema import RunConfig
from conf.tasks.table import window_lengths

Facts = list[tuple[str, str]]


def describe(cfg: RunConfig) -> str:
    """What follows from a resolved `cfg`, as comments, then its YAML: the whole text is still YAML."""
    facts = [*_model_facts(cfg), *_layout_facts(cfg), *_data_facts(cfg), *_routing_facts(cfg)]
    width = max(len(name) for name, _ in facts)
    lines = [f"#   {name:<{width}}  {text}" for name, text in facts]
    return "\n".join(["# What follows from the settings below:", *lines, *_warnings(cfg), "", to_yaml(cfg).rstrip()])


def human(number: float) -> str:
    """A large number with three significant digits and a unit: 7.41B."""
    for size, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= size:
            return f"{number / size:.3g}{unit}" if number < 1000 * size else f"{number / size:,.0f}{unit}"
    return f"{number:.3g}"


def _model_facts(cfg: RunConfig) -> Facts:
    params: Params = count_params(cfg.model, cfg.moe)
    active = num_active_params(cfg.model, cfg.moe)
    experts = f", {human(params.experts)} of them in experts" if params.experts else ""
    inputs = "shared by both stacks" if cfg.model.share_embeddings else "one per stack"
    output = "tied to it" if cfg.model.tie_embeddings else "of its own"
    return [
        ("embedding", f"{inputs}; output matrix {output}"),
        ("parameters", f"{human(params.total)} ({params.total:,}){experts}"),
        ("active per token", f"{human(active)} ({active:,}): all but the experts a token is not sent to"),
        ("FLOPs per token", f"{human(flops_per_token(cfg))} forward and backward, matrix products only"),
        ("FLOPs per step", human(flops_per_sequence(cfg) * cfg.train.global_batch)),
    ]


def _layout_facts(cfg: RunConfig) -> Facts:
    axes = topology(cfg)
    batch = f"{micro_batch_size(cfg)} sequences per rank, {cfg.train.accumulation} per step"
    facts = [
        ("ranks", f"{axes.world} = {cfg.launch.nproc} per node x {cfg.launch.nodes} node(s)"),
        ("dense parameters", f"tp {axes.tp} x dp {axes.dp}"),
        ("parameters per rank", f"{human(local_params(cfg))} ({local_params(cfg):,}), ZeRO stage {cfg.parallel.zero}"),
        ("micro-batch", batch),
    ]
    if not is_dense(cfg):
        held = f"{cfg.moe.num_experts // axes.ep} of {cfg.moe.num_experts} experts of a layer on each rank"
        experts = f"etp {axes.etp} x ep {axes.ep} x edp {axes.edp}: {held}"
        facts.insert(2, ("experts", experts))
    return facts


def _data_facts(cfg: RunConfig) -> Facts:
    lengths = window_lengths(cfg.data)
    text = f"{lengths.raw} tokens of text become {lengths.inputs} encoder and {lengths.targets} decoder tokens"
    padded = f"padded to {cfg.data.encoder_length} and {cfg.data.decoder_length}"
    tokens = cfg.train.global_batch * (lengths.inputs + lengths.targets)
    return [("window", f"{text}, {padded}"), ("tokens per step", f"{tokens:,} at most")]


def _routing_facts(cfg: RunConfig) -> Facts:
    if is_dense(cfg):
        return []
    facts: Facts = [("routing group", f"{cfg.moe.group_sequences} whole sequences, at every layout")]
    for name, layers in stacks(cfg.model, cfg.moe).items():
        tokens, slots = group_tokens(cfg, name), slots_per_token(cfg, name, train=True)
        train, evaluation = (expert_capacity(cfg.moe, tokens, train=train) for train in (True, False))
        sparse = ", ".join(str(layer.index) for layer in layers if layer.experts)
        places = f"{train} slots per expert ({evaluation} in evaluation): {slots:.2f} per token"
        if cfg.moe.capacity == "dropless":
            places = f"none of which is dropped: {slots:.0f} expert rows per token"
        text = f"groups of {tokens:,} tokens, {places}"
        facts += [
            (f"{name} experts", f"layers {sparse} (from 0) of {len(layers)}" if sparse else "none"),
            (f"{name} routing", text),
        ]
    return facts


def _warnings(cfg: RunConfig) -> list[str]:
    """Where the minimum capacity makes experts compute far more rows than tokens."""
    if is_dense(cfg) or cfg.moe.capacity == "dropless":
        return []
    lines = []
    for name in stacks(cfg.model, cfg.moe):
        slots = slots_per_token(cfg, name, train=True)
        if slots > 2 * cfg.moe.capacity_factor:
            lines.append(
                f"# Warning: {name} experts compute {slots:.1f} rows per token, because every expert has at least "
                f"{expert_capacity(cfg.moe, group_tokens(cfg, name), train=True)} slots; larger groups cost less: try "
                f"moe.group_sequences={cfg.moe.group_sequences * 2} or more."
            )
    return lines
