"""Our routing in the form the recordings have it: rows (group, token, expert, slot) with one weight each; our layer.

Shape suffixes: G groups, S tokens per group, D d_model, E experts, C capacity, K slots per token, n dispatched rows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from conf.routing.settings import moe_rules
from conf.schema import MoeConfig
from model.moe.experts import ExpertBank
from model.moe.gather import buffer_index, combine, dispatch
from model.moe.types import Routing
from parallel.layers.experts import LocalExchange

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def dtype_name(dtype: torch.dtype) -> str:
    """As the manifests write it."""
    return str(dtype).removeprefix("torch.")


class Coo(NamedTuple):
    """The dispatch, rows in lexicographic order."""

    index_n4: Tensor
    weight_n: Tensor


def coo(routing: Routing, gates_GSK: Tensor) -> Coo:
    """Rows read from the slots' tokens, weights from the tokens' slots: the two maps must be each other's inverse."""
    _, E, C = routing.tokens_GEC.shape
    S = routing.slots_GSK.shape[1]
    g, e, c = (routing.tokens_GEC < S).nonzero(as_tuple=True)
    by_slot = torch.stack((g, routing.tokens_GEC[g, e, c], e, c), 1)
    g, s, k = (routing.slots_GSK < E * C).nonzero(as_tuple=True)
    slot = routing.slots_GSK[g, s, k]
    by_token = torch.stack((g, s, slot // max(C, 1), slot % max(C, 1)), 1)
    order = _lexicographic(by_token)
    assert torch.equal(by_slot[_lexicographic(by_slot)], by_token[order]), "slots and tokens disagree"
    return Coo(by_token[order], gates_GSK[g, s, k][order])


def _lexicographic(rows_n4: Tensor) -> Tensor:
    order = torch.arange(len(rows_n4))
    for column in (3, 2, 1, 0):
        order = order[rows_n4[order, column].argsort(stable=True)]
    return order


def expert_bank(moe: MoeConfig, wi: Tensor, wo: Tensor, dtype: torch.dtype) -> ExpertBank:
    """Our relu experts with recorded weights. Scaling their gradients is the trainer's business, not the layer's."""
    rules = replace(moe_rules(moe, "encoder"), expert_gradient_factor=1)
    _, d_model, d_ff = wi.shape
    experts = ExpertBank(rules, d_model=d_model, d_ff=d_ff, ffn="relu", exchange=LocalExchange())
    experts.to(dtype)
    experts.wi.data.copy_(wi)
    experts.wo.data.copy_(wo)
    return experts


def run_experts(x_GSD: Tensor, routing: Routing, gates_GSK: Tensor, experts: ExpertBank, out: torch.dtype) -> Tensor:
    """Dispatch, experts and combine of one process, `[G, S, D]` in dtype `out`."""
    exchange, index = LocalExchange(), buffer_index(routing)
    rows_XRD = exchange.to_experts(dispatch(x_GSD, index)).to(experts.wi.dtype)
    rows_XRD = experts(rows_XRD, capacity=routing.capacity, noise=None).to(x_GSD.dtype).to(out)
    return combine(exchange.from_experts(rows_XRD, groups=len(x_GSD)), gates_GSK, index)


def grads_of(value: Tensor, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Gradients of a scalar; zeros where it does not depend on an input."""
    if not value.requires_grad:
        return [torch.zeros_like(given) for given in inputs]
    grads = torch.autograd.grad(value, inputs, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(x) if grad is None else grad for x, grad in zip(inputs, grads, strict=True)]
