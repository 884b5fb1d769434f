"""`bench layer`: the expert layer, forward and backward, against a dense layer and against a loop over experts.

The dense layer takes the same operations per token; the expert layer computes `capacity_factor` times as many rows.
The loop makes the same decisions and gives the same output, which is checked before anything is timed.

Shape suffixes: N tokens, D d_model, F d_ff, K choices, G groups, S tokens per group, E experts, C capacity.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from conf.schema import Ffn
from measure.speed.peers.layers import LAYERS
from measure.speed.peers.side import absence
from measure.speed.result import Row
from measure.speed.setup import LayerCase, Settings, gradients_of, layer_case
from measure.speed.timing import Work, clock_of, compare
from model.moe.experts import ExpertBank

EXPERTS = {"cpu": (8, 32), "cuda": (8, 32, 128)}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}


def run(settings: Settings) -> Iterator[Row]:
    """A row for each number of experts and peer."""
    for experts in EXPERTS[settings.device.type]:
        case = layer_case(settings, experts)
        check_same_output(case)
        clock = clock_of(settings.device)
        ours = gradients_of(lambda case=case: layer_forward(case), [case.x_BLD, *case.layer.parameters()])
        dense = gradients_of(lambda case=case: [case.dense(case.x_BLD, None)], [case.x_BLD, *case.dense.parameters()])
        loop = gradients_of(lambda case=case: loop_forward(case), [case.x_BLD, *case.layer.parameters()])
        name = f"expert layer, {experts} experts"
        peers = {"dense layer": dense, "loop over experts": loop, **_of_others(case, settings.cfg.model.ffn)}
        for peer, work in peers.items():
            comparison = compare(ours, work, clock=clock, rounds=settings.rounds)
            yield Row(
                benchmark="layer",
                case=name,
                peer=peer,
                comparison=comparison,
                numbers={"tokens": case.tokens, "tokens/s": case.tokens / comparison.ours_seconds},
            )


def _of_others(case: LayerCase, ffn: Ffn) -> dict[str, Work]:
    if ffn != "relu":  # theirs have two matrices an expert: another form would be other work
        return {}
    there = (LAYERS[package] for package in LAYERS if absence(package) is None)
    return {name: build(case) for name, build in there}


def layer_forward(case: LayerCase) -> list[Tensor]:
    """Output and losses of the expert layer."""
    y_BLD, routing = case.layer(case.x_BLD, case.real_BL, mode="train", noise=None)
    return [y_BLD, routing.aux_loss, routing.z_sum]


def loop_forward(case: LayerCase) -> list[Tensor]:
    """The same by a Python loop: for every expert pick its tokens, compute, add what comes out where it belongs."""
    routing = case.route()
    E, C = routing.tokens_GEC.shape[1:]
    x_ND = case.x_BLD.flatten(0, 1)
    slots_NK = routing.slots_GSK.flatten(0, 1)
    gates_NK = routing.gates_GSK.flatten(0, 1).to(x_ND.dtype)
    y_ND = torch.zeros_like(x_ND)
    # Taken apart once: the gradient of a bank indexed E times would be E banks of zeros to add up.
    bank = case.layer.experts
    banks = [weight.unbind(0) for weight in bank.parameters()]
    for expert in range(E):
        token, choice = ((slots_NK >= expert * C) & (slots_NK < (expert + 1) * C)).nonzero(as_tuple=True)
        out = expert_output(bank, [weights[expert] for weights in banks], x_ND[token])
        y_ND = y_ND.index_add(0, token, out * gates_NK[token, choice].unsqueeze(-1))
    return [y_ND.view_as(case.x_BLD), routing.aux_loss, routing.z_sum]


def expert_output(bank: ExpertBank, weights: list[Tensor], x_ND: Tensor) -> Tensor:
    """What one expert, by its weights in the bank's order, makes of its tokens."""
    *into, out = weights
    return bank.form.join(*(x_ND @ weight for weight in into)) @ out


def check_same_output(case: LayerCase) -> None:
    """A comparison of two things that do not do the same is none."""
    with torch.no_grad():
        ours, loop = layer_forward(case)[0], loop_forward(case)[0]
    tolerance = TOLERANCE[ours.dtype] * float(loop.abs().max())
    worst = float((ours - loop).abs().max())
    assert worst <= tolerance, f"layer and loop differ by {worst}, more than {tolerance}"
