"""An expert layer for any PyTorch model: initialised, in one process, without a configuration tree.

Shape suffixes: B sequences, L tokens of a sequence, D d_model, E experts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from conf.compose import compose
from conf.routing.settings import MoeRules, moe_rules
from conf.schema import Ffn, SemanticsName
from model.init import InitKey, initialise
from model.moe.balance import joined_loss
from model.moe.layer import MoeLayer
from model.moe.types import LayerRouting
from parallel.layers.experts import LocalExchange
from parallel.mesh.axes import single_process
from parallel.rng import NoiseKey, NoiseSites

PAPER_INIT_SCALE = 0.1  # arXiv 2101.03961, section 2.4


@dataclass(frozen=True, kw_only=True, slots=True)
class SwitchLosses:
    """What a layer adds to the training loss, and how it routed. Scalars in fp32 or wider."""

    total: Tensor  # aux + z, weighted: add it to your loss
    aux: Tensor  # load-balancing loss, weighted
    z: Tensor  # z-loss of the router, weighted
    load_E: Tensor  # share of the tokens' choices that fell on each expert, before capacity; no gradient
    dropped: Tensor  # share of tokens that found no slot; no gradient


PART = "encoder.0"  # what its noise is named after


class SwitchLayer(nn.Module):
    """A feed-forward layer with experts (Switch Transformer, arXiv 2101.03961, section 2), for `[..., L, D]` inputs.

    Takes the place of a feed-forward layer inside a residual block: a dropped token's output is 0. All sequences of a
    call are routed together, with capacity for `capacity_factor` times an even share (`eval_capacity_factor` after
    `eval()`), unless `group_sequences` makes smaller groups. Jitter and dropout are drawn from torch's generator.

    `settings` are any other fields of `moe` (`pointsman config --explain moe`), e.g. `router="top_2"`, `jitter=0.0`,
    `aux_loss_weight=0.02`, `defects="reproduced"`. The router stays in fp32 whatever the layer is cast to.

    Raises:
        ConfigError: a setting that does not exist or does not fit; the text names it.
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        num_experts: int,
        *,
        ffn: Ffn = "relu",
        semantics: SemanticsName = "mesh_tf",
        group_sequences: int | None = None,
        init_scale: float = PAPER_INIT_SCALE,
        seed: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **settings: Any,
    ) -> None:
        """`seed` None: drawn from torch's generator, so that several layers differ."""
        super().__init__()
        rules = _rules(num_experts, semantics, {"group_sequences": group_sequences, **settings})
        self.layer = MoeLayer(rules, d_model=d_model, d_ff=d_ff, ffn=ffn, exchange=LocalExchange())
        self._noise_sites = NoiseSites({PART: self.layer.noise_sites})
        chosen = int(torch.randint(2**31, ())) if seed is None else seed
        initialise(self.layer, single_process(), InitKey(seed=chosen, scale=init_scale, rules=rules.init))
        self.to(device=device, dtype=dtype)

    def forward(self, x: Tensor, real: Tensor | None = None) -> tuple[Tensor, SwitchLosses]:
        """`[..., L, D]` to `[..., L, D]` and the losses; `real` `[..., L]` is False at padding (None: all are real)."""
        *lead, L, D = x.shape
        x_BLD = x.reshape(-1, L, D)
        B = len(x_BLD)
        real_BL = x.new_ones(B, L, dtype=torch.bool) if real is None else real.reshape(B, L)
        noise = None
        if self.training:
            rows_B = torch.arange(B, device=x.device)
            key = NoiseKey(seed=int(torch.randint(2**31, ())), step=0, rows_B=rows_B)
            noise = self._noise_sites.draws(key).of(PART)
        mode = "train" if self.training else "eval"
        with torch.autocast(x.device.type, enabled=False):  # it would round the router's product
            compute = self.layer.experts.wo.dtype
            y_BLD, routing = self.layer(x_BLD.to(compute), real_BL, mode=mode, noise=noise)
        return y_BLD.to(x.dtype).reshape(*lead, L, D), self._losses(routing)

    def _losses(self, routing: LayerRouting) -> SwitchLosses:
        rules, stats = self.layer.rules.losses, routing.stats
        assert stats is not None, "the layer counts"
        if rules.join == "joined":
            assert routing.balance is not None
            aux = joined_loss([routing.balance])
        else:
            aux = routing.aux_loss / routing.groups
        z = routing.z_sum / (stats.tokens.clamp(min=1) if rules.z_divisor == "real" else routing.positions)
        aux, z = aux * rules.aux_weight, z * rules.z_weight
        return SwitchLosses(
            total=aux + z,
            aux=aux,
            z=z,
            load_E=stats.load_E / stats.load_E.sum().clamp(min=1),
            dropped=1 - stats.routed / stats.tokens.clamp(min=1),
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SwitchLayer:
        """As in `nn.Module`, but the router keeps its fp32 values when the layer is cast to a narrower dtype."""
        exact = {name: tensor.detach() for name, tensor in self.layer.router.state_dict().items()}
        super()._apply(fn, recurse)
        for name, tensor in (*self.layer.router.named_parameters(), *self.layer.router.named_buffers()):
            if tensor.dtype in (torch.bfloat16, torch.float16):
                tensor.data = exact[name].to(device=tensor.device)
        return self


def _rules(num_experts: int, semantics: str, settings: dict[str, Any]) -> MoeRules:
    """The rules of these settings, checked as those of a run are."""
    group = settings.pop("group_sequences")
    lines = [f"moe={semantics}", f"moe.num_experts={num_experts}"]
    lines += [f"moe.{name}={_typed(value)}" for name, value in settings.items()]
    # One process, and a batch that any group divides: what is left to check is routing.
    one = ("parallel=data", "parallel.backend=gloo", "launch.nproc=1", "train.accumulation=1", "moe.group_sequences=1")
    cfg = compose([*lines, *one])
    return replace(moe_rules(cfg.moe, "encoder"), group_sequences=group)


def _typed(value: Any) -> str:
    """A value as the command line has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
