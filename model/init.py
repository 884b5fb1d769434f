"""Initial weights as a function of (seed, parameter name, expert index): the same logical tensor at every layout.

Each rank draws a logical tensor (of an expert bank: one expert at a time) on the CPU and keeps its slice.

What the references do, and what is done here with variance scale s (0.1 in the Switch paper, section 2.4):
linear layers take a normal truncated at two sigma with stddev sqrt(s / fan_in) and no variance correction (the real
spread is 0.88 of that), as Mesh-TensorFlow's `truncated_normal`; fan_in is d_model, d_ff or heads * d_kv, for q
d_model * d_kv because T5 does not scale scores. The embedding is N(0, 1) whatever s is (T5 and flaxformer). The
relative bias follows Hugging Face's T5 form, stddev sqrt(s / d_model), truncated like the rest. Norms start at 1.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from parallel.engine import MASTER
from parallel.layout import ParamSpec, Shard, shard_of, tagged_parameters
from parallel.types import ParallelGroups


@torch.no_grad()
def initialise(module: nn.Module, groups: ParallelGroups, *, seed: int, scale: float) -> None:
    """Fill every tagged parameter of `module` in place with its slice of the logical initial weights."""
    for name, parameter, spec in tagged_parameters(module):
        _fill(parameter, spec, shard_of(parameter, groups), seed=seed, name=name, scale=scale)


def initial_masters(
    module: nn.Module, groups: ParallelGroups, *, seed: int, scale: float
) -> Callable[[str, str], Tensor | None]:
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
        _fill(values, spec, shard_of(parameter, groups), seed=seed, name=name, scale=scale)
        return values

    return read


def _fill(values: Tensor, spec: ParamSpec, shard: Shard, *, seed: int, name: str, scale: float) -> None:
    """Copy this rank's slice of a logical tensor; of an expert bank one expert at a time."""
    if not spec.is_expert:
        logical = draw(spec, shard.global_shape, seed=seed, name=name, expert=None, scale=scale)
        values.copy_(logical[shard.slices])
        return
    assert spec.axes[0] == "experts", f"{name}: experts must be the first dim, got {spec.axes}"
    for local in range(shard.local_shape[0]):
        expert = shard.offsets[0] + local
        logical = draw(spec, shard.global_shape[1:], seed=seed, name=name, expert=expert, scale=scale)
        values[local].copy_(logical[shard.slices[1:]])


def draw(spec: ParamSpec, shape: tuple[int, ...], *, seed: int, name: str, expert: int | None, scale: float) -> Tensor:
    """One logical tensor in fp32 on the CPU."""
    assert spec.init in RULES, f"{name}: no initialisation rule {spec.init!r}; one of {sorted(RULES)}"
    values = torch.empty(shape, dtype=torch.float32, device="cpu")
    generator = torch.Generator("cpu").manual_seed(tensor_seed(seed, name, expert))
    RULES[spec.init](values, spec, scale, generator)
    return values


def tensor_seed(seed: int, name: str, expert: int | None) -> int:
    """63-bit hash of what a tensor's initial values depend on."""
    text = f"{seed}|{name}|{'' if expert is None else expert}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def _fan_in(values: Tensor, spec: ParamSpec, scale: float, generator: torch.Generator) -> None:
    assert spec.fan_in is not None, f"rule fan_in without a fan_in: {spec}"
    std = math.sqrt(scale / spec.fan_in)
    nn.init.trunc_normal_(values, 0.0, std, -2 * std, 2 * std, generator=generator)


def _embedding(values: Tensor, spec: ParamSpec, scale: float, generator: torch.Generator) -> None:
    values.normal_(0.0, 1.0, generator=generator)


def _ones(values: Tensor, spec: ParamSpec, scale: float, generator: torch.Generator) -> None:
    values.fill_(1.0)


# ParamSpec.init -> how to fill a logical tensor.
RULES: dict[str, Callable[[Tensor, ParamSpec, float, torch.Generator], None]] = {
    "fan_in": _fan_in,
    "embedding": _embedding,
    "ones": _ones,
}
