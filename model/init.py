"""Initial weights as a function of (seed, parameter name, expert index): the same logical tensor at every layout.

Each rank draws a logical tensor (of an expert bank: one expert at a time) on the CPU and keeps its slice.

With variance scale s (0.1 in the Switch paper, section 2.4) a linear layer has stddev sqrt(s / fan_in); fan_in is
d_model, d_ff or heads * d_kv, for q d_model * d_kv because T5 does not scale scores. How it is truncated, and what
routers and experts draw, is in `InitRules`: Mesh-TensorFlow truncates at two sigma and leaves the variance (the real
spread is 0.88 of what is asked for); flaxformer corrects it, draws experts from a plain normal and routers from
N(0, 0.02); Hugging Face truncates nothing, draws routers and untied output matrices from N(0, s) and gives experts' wo
the fan-in d_model. The embedding is N(0, 1) whatever s is (T5 and flaxformer; Hugging Face: N(0, s)). The relative bias
has stddev sqrt(s / d_model). Norms start at 1 (Hugging Face: sqrt(s)).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from conf.routing.settings import InitRules, init_rules
from conf.schema import RunConfig
from parallel.engine.protocol import MASTER
from parallel.layers.sharding import ParamSpec, Shard, shard_of, tagged_parameters
from parallel.mesh.axes import Mesh

TRUNCATED_SPREAD = 0.87962566103423978  # stddev of a standard normal cut at two sigma


@dataclass(frozen=True, kw_only=True, slots=True)
class InitKey:
    """What initial values depend on besides the parameter itself."""

    seed: int
    scale: float  # variance scale s
    rules: InitRules


def init_key(cfg: RunConfig) -> InitKey:
    """The key of a configured run."""
    return InitKey(seed=cfg.seed, scale=cfg.model.init_scale, rules=init_rules(cfg.moe))


@torch.no_grad()
def initialise(module: nn.Module, mesh: Mesh, key: InitKey) -> None:
    """Fill every tagged parameter of `module` in place with its slice of the logical initial weights."""
    for name, parameter, spec in tagged_parameters(module):
        _fill(parameter, spec, shard_of(parameter, mesh), name=name, key=key)


def initial_masters(module: nn.Module, mesh: Mesh, key: InitKey) -> Callable[[str, str], Tensor | None]:
    """The weights of `initialise` before they were rounded, as `Engine.load_state(weights_only=True)` reads them.

    An engine copies its fp32 masters from the module's weights; in mixed precision those are rounded already. Each
    shard (fp32, on the CPU) is drawn when it is asked for, and forgotten.
    """
    parameters = {name: (parameter, spec) for name, parameter, spec in tagged_parameters(module)}

    def read(name: str, kind: str) -> Tensor | None:
        if kind != MASTER:
            return None
        parameter, spec = parameters[name]
        values = torch.empty(parameter.shape, dtype=torch.float32)
        _fill(values, spec, shard_of(parameter, mesh), name=name, key=key)
        return values

    return read


def _fill(values: Tensor, spec: ParamSpec, shard: Shard, *, name: str, key: InitKey) -> None:
    """Copy this rank's slice of a logical tensor; of an expert bank one expert at a time."""
    if not spec.is_expert:
        logical = draw(spec, shard.global_shape, name=name, expert=None, key=key)
        values.copy_(logical[shard.slices])
        return
    assert spec.dims[0] == "experts", f"{name}: experts must be the first dim, got {spec.dims}"
    for local in range(shard.local_shape[0]):
        expert = shard.offsets[0] + local
        logical = draw(spec, shard.global_shape[1:], name=name, expert=expert, key=key)
        values[local].copy_(logical[shard.slices[1:]])


def draw(spec: ParamSpec, shape: tuple[int, ...], *, name: str, expert: int | None, key: InitKey) -> Tensor:
    """One logical tensor in fp32 on the CPU."""
    assert spec.init in RULES, f"{name}: no initialisation rule {spec.init!r}; one of {sorted(RULES)}"
    values = torch.empty(shape, dtype=torch.float32, device="cpu")
    generator = torch.Generator("cpu").manual_seed(tensor_seed(key.seed, name, expert))
    RULES[spec.init](values, spec, key, generator)
    return values


def tensor_seed(seed: int, name: str, expert: int | None) -> int:
    """63-bit hash of what a tensor's initial values depend on."""
    text = f"{seed}|{name}|{'' if expert is None else expert}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def _fan_in(values: Tensor, spec: ParamSpec, key: InitKey, generator: torch.Generator) -> None:
    """Linear layers, routers, experts and the relative bias."""
    rules = key.rules
    assert spec.fan_in is not None, f"rule fan_in without a fan_in: {spec}"
    if "router_experts" in spec.dims and rules.router_std is not None:
        values.normal_(0.0, rules.router_std * _beyond_kernels(key), generator=generator)
        return
    if spec.dims == ("vocab", "embed") and rules.head == "embedding":
        _embedding(values, spec, key, generator)
        return
    fan_in = spec.fan_in
    if spec.dims == ("experts", "expert_ff", "embed") and rules.wo_fan == "d_model":
        fan_in = values.shape[-1]
    std = math.sqrt(key.scale / fan_in)
    if rules.truncation == "none" or (spec.is_expert and rules.expert_kernel == "normal"):
        values.normal_(0.0, std, generator=generator)
        return
    if rules.truncation == "corrected":
        std /= TRUNCATED_SPREAD
    nn.init.trunc_normal_(values, 0.0, std, -2 * std, 2 * std, generator=generator)


def _embedding(values: Tensor, spec: ParamSpec, key: InitKey, generator: torch.Generator) -> None:
    values.normal_(0.0, _beyond_kernels(key), generator=generator)


def _ones(values: Tensor, spec: ParamSpec, key: InitKey, generator: torch.Generator) -> None:
    values.fill_(_beyond_kernels(key))


def _zeros(values: Tensor, spec: ParamSpec, key: InitKey, generator: torch.Generator) -> None:
    values.zero_()


def _beyond_kernels(key: InitKey) -> float:
    """Factor on what the variance scale is not about, except where the reference applies it to everything."""
    return math.sqrt(key.scale) if key.rules.scaled == "all" else 1.0


# ParamSpec.init -> how to fill a logical tensor.
RULES: dict[str, Callable[[Tensor, ParamSpec, InitKey, torch.Generator], None]] = {
    "fan_in": _fan_in,
    "embedding": _embedding,
    "ones": _ones,
    "zeros": _zeros,
}
