"""The expert layer: regroup, route, dispatch, run the experts, combine.

Shape suffixes: B batch, L length, D d_model, G groups, S tokens per group, E experts, C capacity, K choices, X experts
of this rank, R buffer rows per expert, or sorted rows.
"""

from __future__ import annotations

from dataclasses import fields, replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conf.routing.routers import RouterRow
from conf.routing.settings import CapacityRule, MoeRules
from conf.schema import Ffn
from model.moe.balance import layer_balance
from model.moe.experts import DROPOUT, ExpertBank, group_noise, row_noise
from model.moe.gather import buffer_index, combine, dispatch, sorted_index
from model.moe.routers.numerics import JITTER, Numerics, jitter_factor, jitters
from model.moe.routers.route import route, router_in
from model.moe.routers.tokens import RouterNoise, Tokens
from model.moe.tap import RoutingTap
from model.moe.types import LayerBalance, LayerRouting, RouteMode, RouterStats, Routing
from parallel.layers.experts import ExpertExchange
from parallel.layers.sharding import ParamSpec, tag
from parallel.rng import Draws

WIDE = (torch.float32, torch.float64)  # activations that the router reads without a copy


class Router(nn.Module):
    """Holds a router's matrices and state, fp32 in every run; the maths is in `model.moe.routers`."""

    weight: Tensor

    def __init__(self, row: RouterRow, d_model: int, num_experts: int) -> None:
        super().__init__()
        for matrix in row.matrices:
            spec = ParamSpec(dims=("embed", "router_experts"), keep_fp32=True, fan_in=d_model, init=matrix.init)
            self.register_parameter(matrix.name, tag(nn.Parameter(torch.empty(d_model, num_experts)), spec))
        for name in row.state:
            self.register_buffer(name, torch.zeros(num_experts))


class MoeLayer(nn.Module):
    """A bank of experts in the place of a feed-forward layer; the residual around it is the caller's.

    Output is the gate times the expert's output, exactly 0 for tokens over
    capacity and, where the rules route real tokens alone, for padding.
    """

    def __init__(self, rules: MoeRules, *, d_model: int, d_ff: int, ffn: Ffn, exchange: ExpertExchange) -> None:
        super().__init__()
        self.rules, self.exchange = rules, exchange
        self.noise_sites = (JITTER, *rules.row.noise, DROPOUT)
        self.maths = router_in(rules.row.module)
        self.router = Router(rules.row, d_model, rules.num_experts)
        self.experts = ExpertBank(rules, d_model=d_model, d_ff=d_ff, ffn=ffn, exchange=exchange)
        self.counts = True  # whether statistics of routing are taken; generation takes none
        self.tap: RoutingTap | None = None  # set by `measure.verify` alone

    def forward(
        self,
        x_BLD: Tensor,
        real_BL: Tensor,
        *,
        mode: RouteMode,
        noise: Draws | None,
        ids_BL: Tensor | None = None,
    ) -> tuple[Tensor, LayerRouting]:
        """`[B, L, D]` and what the loss and the log need. `real_BL` is False at padding; `noise` None: none.

        Noise is drawn in mode "train" only. `ids_BL`, the tokens' ids, is read by routers that ask for it. The batch
        holds whole groups, except in mode "no_drop".
        """
        B, L, D = x_BLD.shape
        if mode == "no_drop" and B % self.exchange.group_shards:
            # Tensor ranks share out single sequences here: fill up with padding, of which nothing remains.
            extra = (0, -B % self.exchange.group_shards)
            x_BLD, real_BL = F.pad(x_BLD, (0, 0, 0, 0, *extra)), F.pad(real_BL, (0, 0, *extra))
            ids_BL = F.pad(ids_BL, (0, 0, *extra)) if ids_BL is not None else None
            y_BLD, routing = self(x_BLD, real_BL, mode=mode, noise=noise, ids_BL=ids_BL)
            return y_BLD[:B], routing
        sequences = self._group_sequences(B, mode)
        if noise is not None:
            noise = self._enter_noise(noise, sequences) if mode == "train" else None
        tokens = self._tokens(x_BLD, real_BL, ids_BL, sequences, noise)
        routing = self._route(tokens, mode)
        if self.tap is not None:
            self.tap.decided(routing)
        gates_GSK = Numerics(self.rules, x_BLD.dtype).combine_weights(routing.gates_GSK)
        if noise is not None and self.rules.expert_dropout == 0:
            noise = None  # what follows draws for dropout alone
        if self._unbounded(mode):
            y_GSD = self._through_rows(tokens.x_GSD, gates_GSK, routing, noise, length=L)
        else:
            y_GSD = self._through_buffers(tokens.x_GSD, gates_GSK, routing, noise, sequences)
        report = self._report(routing, positions=B * L, groups=B // sequences)
        return self.exchange.leave(y_GSD).view(B, L, D), report

    def _unbounded(self, mode: RouteMode) -> bool:
        """No choice is dropped for want of a slot; such buffers would have E rows a token."""
        return (mode == "no_drop" or self.rules.dropless) and not self.rules.row.experts_choose

    def _through_buffers(
        self, x_GSD: Tensor, gates_GSK: Tensor, routing: Routing, noise: Draws | None, sequences: int
    ) -> Tensor:
        """Experts work on buffers with a place for each slot."""
        index = buffer_index(routing)
        rows_XRD = self.exchange.to_experts(dispatch(x_GSD, index))
        if noise is not None:
            noise = group_noise(noise, sequences, self.exchange)
        rows_XRD = self.experts(rows_XRD, capacity=routing.capacity, noise=noise)
        return combine(self.exchange.from_experts(rows_XRD, groups=len(x_GSD)), gates_GSK, index)

    def _through_rows(
        self, x_GSD: Tensor, gates_GSK: Tensor, routing: Routing, noise: Draws | None, *, length: int
    ) -> Tensor:
        """Experts work on the rows of the choices that fell on them, as many as there are."""
        index, counts_E = sorted_index(routing)
        plan = self.exchange.plan_rows(counts_E, rows=len(index.tokens_R))
        rows_RD = self.exchange.rows_to_experts(dispatch(x_GSD, index), plan)
        if noise is not None:
            noise = row_noise(noise, index.choice_of_rows(), length=length, choices=gates_GSK.shape[-1])
            noise = replace(noise, rows_B=self.exchange.rows_to_experts(noise.rows_B, plan))
        rows_RD = self.experts.sorted(rows_RD, plan.counts_X, noise=noise)
        return combine(self.exchange.rows_from_experts(rows_RD, plan), gates_GSK, index)

    def _group_sequences(self, batch: int, mode: RouteMode) -> int:
        """Sequences per group; every tensor rank that shares the groups must get as many whole ones."""
        sequences = 1 if mode == "no_drop" else self.rules.group_sequences or batch
        assert batch % (sequences * self.exchange.group_shards) == 0, (batch, sequences, self.exchange.group_shards)
        return sequences

    def _enter_noise(self, noise: Draws, sequences: int) -> Draws:
        """The key of this rank's share of the rows."""
        rows_GQ = self.exchange.enter(noise.rows_B.view(-1, sequences))
        return replace(noise, rows_B=rows_GQ.reshape(-1))

    def _tokens(
        self, x_BLD: Tensor, real_BL: Tensor, ids_BL: Tensor | None, sequences: int, noise: Draws | None
    ) -> Tokens:
        """This rank's groups of whole sequences."""
        B, L, D = x_BLD.shape
        x_GSD = self.exchange.enter(x_BLD.reshape(B // sequences, sequences * L, D))
        real_GS = self.exchange.enter(real_BL.reshape(B // sequences, sequences * L))
        ids_GS = None
        if self.rules.row.needs_ids:
            assert ids_BL is not None, f"the router {self.rules.router} reads token ids"
            ids_GS = self.exchange.enter(ids_BL.reshape(B // sequences, sequences * L))
        named = (*self.router.named_parameters(), *self.router.named_buffers())
        tokens = Tokens(
            x_GSD=x_GSD,
            real_GS=real_GS,
            weights={name: self.exchange.shared_weight(weight) for name, weight in named},
            ids_GS=ids_GS,
            noise=RouterNoise(draws=noise, groups=len(x_GSD), length=L) if noise is not None else None,
        )
        jitter = self.rules.jitter
        if jitter.reaches_experts and jitters(jitter) and tokens.noise is not None and x_GSD.dtype in WIDE:
            return replace(tokens, x_GSD=x_GSD * jitter_factor(jitter, tokens.noise, like=x_GSD), jittered=True)
        return tokens

    def _route(self, tokens: Tokens, mode: RouteMode) -> Routing:
        """Routing of this rank's groups with the capacity of `mode`."""
        S, rules = tokens.x_GSD.shape[1], self.rules
        if mode != "no_drop":
            capacity = rules.slots(S, train=mode == "train")
        elif self._unbounded(mode):
            capacity = S + rules.first_slot
        else:
            # With a slot for every token every expert would take them all, which it never learnt: each sequence has
            # the capacity of its own real tokens, so that neither its neighbours nor its padding change the result.
            capacity = min(S, rules.capacity.slots(S, train=False))
            slots = _evaluation_slots(rules.capacity, S, tokens.real_GS.device)
            rules, tokens = replace(rules, routed="real"), replace(tokens, limit_G=slots[tokens.real_GS.sum(1)])
        counts = self.counts and mode != "no_drop"
        routing = route(self.maths, tokens, rules, capacity, self.tap, counts=counts)
        if routing.stats is None or not self._unbounded(mode):
            return routing
        rows = (routing.slots_GSK < rules.num_experts * capacity).sum().float()
        return replace(routing, stats=replace(routing.stats, slots=rows))

    def _balance(self, routing: Routing) -> LayerBalance | None:
        """f and P of all groups, for losses that join layers before they multiply the two."""
        if self.rules.losses.join != "joined":
            return None
        own = layer_balance(routing, after_capacity=self.rules.losses.after_capacity)
        f_GE, p_GE = self.exchange.leave(torch.stack((own.f_GE, own.p_GE), 1)).unbind(1)
        return LayerBalance(f_GE=f_GE, p_GE=p_GE)

    def _report(self, routing: Routing, *, positions: int, groups: int) -> LayerRouting:
        """Losses and counts over all groups of the micro-batch, in one reduction over the ranks that shared them."""
        aux_loss, z_sum, stats = routing.aux_loss, routing.z_sum, routing.stats
        if self.exchange.group_shards > 1:
            parts = [] if stats is None else [getattr(stats, field.name) for field in fields(RouterStats)]
            flat = torch.cat((torch.stack((aux_loss, z_sum)), *(part.reshape(-1).to(aux_loss.dtype) for part in parts)))
            summed = self.exchange.sum_shards(flat)
            aux_loss, z_sum = summed[0], summed[1]
            pieces = summed[2:].detach().float().split([part.numel() for part in parts])
            named = {f.name: v.view(p.shape) for f, v, p in zip(fields(RouterStats), pieces, parts, strict=False)}
            stats = None if stats is None else RouterStats(**named)
        return LayerRouting(
            aux_loss=aux_loss,
            z_sum=z_sum,
            positions=positions,
            groups=groups,
            stats=stats,
            balance=self._balance(routing),
        )


@lru_cache(maxsize=64)
def _evaluation_slots(rule: CapacityRule, most: int, device: torch.device) -> Tensor:
    """Slots of an expert for 0, 1, .., `most` tokens, int64: a table, so that counts on the device index it there."""
    return torch.tensor([rule.slots(tokens, train=False) for tokens in range(most + 1)], device=device)
