"""The bank of experts a rank holds: stacked weights and their products with buffers of rows, or with sorted rows.

Shape suffixes: X experts of this rank (E/ep), R buffer rows per expert (ep * G * C), D d_model, F this rank's columns
of d_ff (d_ff/etp). With etp > 1 the output is this shard's part of a sum that `parallel.layers.experts` completes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from conf.routing.settings import MoeRules
from conf.schema import Ffn
from model.activations import FORMS
from model.moe.grouped import grouped_mm
from parallel.layers.experts import ExpertExchange
from parallel.layers.sharding import ParamSpec, tag
from parallel.rng import Draws, keyed_dropout, keyed_uniform

DROPOUT = "expert_dropout"  # the site of its noise


class ExpertBank(nn.Module):
    """Feed-forward experts in any form of `model.activations`, without bias, dropout inside."""

    def __init__(self, rules: MoeRules, *, d_model: int, d_ff: int, ffn: Ffn, exchange: ExpertExchange) -> None:
        super().__init__()
        self.form = FORMS[ffn]
        self.dropout = rules.expert_dropout
        self.gradient_factor = rules.expert_gradient_factor
        self.num_local = rules.num_experts // exchange.ep_size
        self.columns = d_ff // exchange.etp_size
        self.first_expert = exchange.ep_rank * self.num_local
        self.first_column = exchange.etp_rank * self.columns
        into = ParamSpec(dims=("experts", "embed", "expert_ff"), fan_in=d_model)
        for weight in self.form.into:
            self.register_parameter(weight, _empty((self.num_local, d_model, self.columns), into))
        out = ParamSpec(dims=("experts", "expert_ff", "embed"), fan_in=d_ff)
        self.wo = _empty((self.num_local, self.columns, d_model), out)

    def forward(self, rows_XRD: Tensor, *, capacity: int, noise: Draws | None) -> Tensor:
        """Every row through its expert: `[X, R, D]`. `noise.rows_B`: first global row of each of the R/C groups.

        Rows of empty slots are computed as well: shapes stay static, and an expert without tokens gets a zero
        gradient instead of none, so that every rank takes part in every collective.
        """
        products = (torch.bmm(rows_XRD, self._weight(self.get_parameter(weight))) for weight in self.form.into)
        hidden_XRF = self.form.join(*products)
        if noise is not None and self.dropout > 0:
            # A Python number rounds a bf16 product once; a mask holding 1 / (1 - p) would be rounded before it.
            hidden_XRF = torch.where(self._keep(noise, capacity), hidden_XRF, 0) * (1 / (1 - self.dropout))
        return torch.bmm(hidden_XRF, self._weight(self.wo))

    def sorted(self, rows_RD: Tensor, counts_X: Tensor, *, noise: Draws | None) -> Tensor:
        """Rows that lie expert by expert, `counts_X` of each, through their experts: `[R, D]`.

        Costs what the rows cost, whatever the number of experts. Rows behind the last expert's are left out; what is
        said of them is undefined. `noise.rows_B`: a number of each row, the same at every layout.
        """
        ends_X = counts_X.cumsum(0, dtype=torch.int32)
        into = (grouped_mm(rows_RD, self._weight(self.get_parameter(weight)), ends_X) for weight in self.form.into)
        hidden_RF = self.form.join(*into)
        if noise is not None:
            hidden_RF = keyed_dropout(hidden_RF, self.dropout, noise, DROPOUT, ((self.first_column, self.columns),))
        return grouped_mm(hidden_RF, self._weight(self.wo), ends_X)

    def _weight(self, weight: Tensor) -> Tensor:
        """The weight, with its gradient scaled where the rules say so."""
        return weight if self.gradient_factor == 1 else _Scaled.apply(weight, self.gradient_factor)  # type: ignore[return-value]

    def _keep(self, noise: Draws, capacity: int) -> Tensor:
        """What dropout keeps, bool [X, R, F], keyed by group, expert, slot and column of the whole layer."""
        ranges = ((self.first_expert, self.num_local), (0, capacity), (self.first_column, self.columns))
        keep_GXCF = keyed_uniform(noise, DROPOUT, ranges) >= self.dropout
        return keep_GXCF.transpose(0, 1).flatten(1, 2)


def _empty(shape: tuple[int, ...], spec: ParamSpec) -> nn.Parameter:
    """An uninitialised, tagged parameter (`model.init` fills it)."""
    return tag(nn.Parameter(torch.empty(shape)), spec)


class _Scaled(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a number."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, factor: int) -> Tensor:
        ctx.factor = factor
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0] * ctx.factor, None


def row_noise(noise: Draws, choice_R: Tensor, *, length: int, choices: int) -> Draws:
    """`noise` keyed by the choices that sorted rows are: flat numbers n * K + k of tokens in sequences of `length`."""
    per_row = length * choices
    sequence_R = torch.div(choice_R, per_row, rounding_mode="floor").clamp(max=len(noise.rows_B) - 1)
    return replace(noise, rows_B=noise.rows_B[sequence_R] * per_row + choice_R % per_row)


def group_noise(noise: Draws, group_sequences: int, exchange: ExpertExchange) -> Draws:
    """`noise` keyed by the first row of each group whose slots lie in this rank's expert buffers, in buffer order."""
    return replace(noise, rows_B=exchange.gather_rows(noise.rows_B[::group_sequences].contiguous()))
