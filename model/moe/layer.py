"""The expert layer: regroup, route, dispatch, run the experts, combine.

Shape suffixes: B batch, L length, D d_model, G groups, S tokens per group, E experts, C capacity, K choices, X experts
of this rank, R buffer rows per expert.
"""

from __future__ import annotations

from dataclasses import fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conf.derived.groups import expert_capacity
from conf.routing.settings import counts_kept, jitter_reaches_experts, over_layers, router_settings
from conf.schema import ModelConfig, MoeConfig
from model.moe.balance import layer_balance
from model.moe.capacity import capacities
from model.moe.experts import ExpertBank, group_noise
from model.moe.gather import combine, dispatch, slot_index
from model.moe.routers.router import RouterNoise, noise_width, route
from model.moe.tap import RoutingTap
from model.moe.types import LayerBalance, LayerRouting, RouteMode, RouterStats, Routing
from parallel.layers.experts import ExpertExchange
from parallel.layers.sharding import ParamSpec, tag
from parallel.rng import NoiseKey, keyed_uniform

WIDE = (torch.float32, torch.float64)  # activations that the router reads without a copy


class Router(nn.Module):
    """Holds the router's weight, fp32 whatever the precision of the run; the maths is in `model.moe.routers`."""

    def __init__(self, d_model: int, num_experts: int) -> None:
        super().__init__()
        spec = ParamSpec(dims=("embed", "router_experts"), keep_fp32=True, fan_in=d_model)
        self.weight = tag(nn.Parameter(torch.empty(d_model, num_experts)), spec)


class MoeLayer(nn.Module):
    """A bank of experts in the place of a feed-forward layer; the residual around it is the caller's.

    `name` ("encoder.3") keys the layer's noise. Output is the gate times the expert's output, exactly 0 for padding
    and for tokens over capacity.
    """

    def __init__(self, model: ModelConfig, moe: MoeConfig, *, name: str, exchange: ExpertExchange) -> None:
        super().__init__()
        self.moe = moe
        self.settings = router_settings(moe, "encoder" if name.startswith("encoder") else "decoder")
        self.leaks = jitter_reaches_experts(moe)
        self.name = name
        self.exchange = exchange
        self.router = Router(model.d_model, moe.num_experts)
        self.experts = ExpertBank(model, moe, name=name, exchange=exchange)
        self.tap: RoutingTap | None = None  # set by `measure.verify` alone

    def forward(
        self, x_BLD: Tensor, real_BL: Tensor, *, mode: RouteMode, noise: NoiseKey | None
    ) -> tuple[Tensor, LayerRouting]:
        """`[B, L, D]` and what the loss and the log need. `real_BL` is False at padding; `noise` None: none.

        Noise is drawn in mode "train" only. The batch holds whole groups, except in mode "no_drop".
        """
        B, L, D = x_BLD.shape
        if mode == "no_drop" and B % self.exchange.group_shards:
            # Tensor ranks share out single sequences here: fill up with padding, of which nothing remains.
            extra = -B % self.exchange.group_shards
            x_BLD, real_BL = F.pad(x_BLD, (0, 0, 0, 0, 0, extra)), F.pad(real_BL, (0, 0, 0, extra))
            y_BLD, routing = self(x_BLD, real_BL, mode=mode, noise=noise)
            return y_BLD[:B], routing
        sequences = self._group_sequences(B, mode)
        x_GSD = self.exchange.enter(x_BLD.reshape(B // sequences, sequences * L, D))
        real_GS = self.exchange.enter(real_BL.reshape(B // sequences, sequences * L))
        if noise is not None:
            noise = self._enter_noise(noise, sequences) if mode == "train" else None
        drawn = self._noise(x_GSD, sequences, noise)
        if drawn is not None and drawn.uniform_GSW is not None and self.leaks and x_GSD.dtype in WIDE:
            x_GSD, drawn = x_GSD * drawn.factor(x_GSD.dtype), drawn._replace(uniform_GSW=None)
        routing = self._route(x_GSD, real_GS, mode, drawn)
        if self.tap is not None:
            self.tap.decided(routing)
        index = slot_index(routing)
        rows_XRD = self.exchange.to_experts(dispatch(x_GSD, index))
        row_noise = None
        if noise is not None and self.moe.expert_dropout > 0:
            row_noise = group_noise(noise, sequences, self.exchange)
        rows_XRD = self.experts(rows_XRD, capacity=routing.capacity, noise=row_noise)
        buffer_EGCD = self.exchange.from_experts(rows_XRD, groups=len(x_GSD))
        gates_GSK = routing.gates_GSK
        if self.settings.combine == "activation":
            gates_GSK = gates_GSK.to(x_BLD.dtype)
        y_GSD = combine(buffer_EGCD, gates_GSK, index)
        return self.exchange.leave(y_GSD).view(B, L, D), self._report(routing, positions=B * L)

    def _group_sequences(self, batch: int, mode: RouteMode) -> int:
        """Sequences per group; every tensor rank that shares the groups must get as many whole ones."""
        sequences = 1 if mode == "no_drop" else self.moe.group_sequences
        assert batch % (sequences * self.exchange.group_shards) == 0, (batch, sequences, self.exchange.group_shards)
        return sequences

    def _enter_noise(self, noise: NoiseKey, sequences: int) -> NoiseKey:
        """The key of this rank's share of the rows."""
        rows_GQ = self.exchange.enter(noise.rows_B.view(-1, sequences))
        return replace(noise, rows_B=rows_GQ.reshape(-1))

    def _route(self, x_GSD: Tensor, real_GS: Tensor, mode: RouteMode, noise: RouterNoise | None) -> Routing:
        """Routing of this rank's groups with the capacity and the noise of `mode`."""
        S, settings, limit_G = x_GSD.shape[1], self.settings, None
        if mode != "no_drop":
            capacity = expert_capacity(self.moe, S, train=mode == "train")
        elif settings.router == "expert_choice":
            # With a slot for every token every expert would take them all, which it never learnt: each sequence has
            # the capacity of its own real tokens, so that neither its neighbours nor its padding change the result.
            capacity = min(S, expert_capacity(self.moe, S, train=False))
            limit_G, settings = capacities(self.moe, real_GS.sum(1), train=False), replace(settings, padding="skipped")
        else:
            capacity = S + settings.first_slot
        return route(
            x_GSD,
            real_GS,
            self.exchange.shared_weight(self.router.weight),
            settings=settings,
            capacity=capacity,
            noise=noise,
            limit_G=limit_G,
            tap=self.tap,
        )

    def _noise(self, x_GSD: Tensor, sequences: int, noise: NoiseKey | None) -> RouterNoise | None:
        """What the router draws, per sequence and position, so that it does not depend on the grouping."""
        random_second = self.settings.router == "top_2" and self.settings.second_policy == "random"
        jittered = self.settings.jitter != "none" and self.moe.jitter > 0
        if noise is None or not (jittered or random_second):
            return None
        G, S, D = x_GSD.shape
        uniform_GSW = second_GS = None
        if jittered:
            width = noise_width(self.settings, D, self.moe.num_experts)
            uniform_BLW = keyed_uniform(noise, f"{self.name}.router_jitter", ((0, S // sequences), (0, width)))
            uniform_GSW = uniform_BLW.view(G, S, width)
        if random_second:
            second_GS = keyed_uniform(noise, f"{self.name}.router_second", ((0, S // sequences),)).view(G, S)
        return RouterNoise(uniform_GSW, self.moe.jitter, second_GS)

    def _balance(self, routing: Routing) -> LayerBalance | None:
        """f and P of all groups, for losses that join layers before they multiply the two."""
        if over_layers(self.moe) != "joined":
            return None
        own = layer_balance(routing, after_capacity=counts_kept(self.moe))
        f_GE, p_GE = self.exchange.leave(torch.stack((own.f_GE, own.p_GE), 1)).unbind(1)
        return LayerBalance(f_GE=f_GE, p_GE=p_GE)

    def _report(self, routing: Routing, *, positions: int) -> LayerRouting:
        """Losses and counts over all groups of the micro-batch, in one reduction over the ranks that shared them."""
        balance = self._balance(routing)
        if self.exchange.group_shards == 1:
            return LayerRouting(
                aux_loss=routing.aux_loss,
                z_sum=routing.z_sum,
                positions=positions,
                stats=routing.stats,
                balance=balance,
            )
        parts = [getattr(routing.stats, field.name) for field in fields(RouterStats)]
        wide = routing.aux_loss.dtype
        losses = torch.stack((routing.aux_loss, routing.z_sum))
        summed = self.exchange.sum_shards(torch.cat((losses, *(part.reshape(-1).to(wide) for part in parts))))
        pieces = summed[2:].detach().float().split([part.numel() for part in parts])
        stats = {f.name: v.view(p.shape) for f, v, p in zip(fields(RouterStats), pieces, parts, strict=True)}
        return LayerRouting(
            aux_loss=summed[0], z_sum=summed[1], positions=positions, stats=RouterStats(**stats), balance=balance
        )
