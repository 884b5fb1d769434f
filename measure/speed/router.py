"""`bench router`: each part of the expert layer, forward and backward, as a share of the whole layer.

The parts are measured one by one on inputs of their own, so their shares need not add up to one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from measure.speed.layer import EXPERTS, layer_forward
from measure.speed.result import Row
from measure.speed.setup import LayerCase, Settings, gradients_of, layer_case
from measure.speed.timing import clock_of, compare
from model.moe.gather import buffer_index, combine, dispatch


def run(settings: Settings) -> Iterator[Row]:
    """A row for each part and number of experts."""
    for experts in EXPERTS[settings.device.type]:
        case = layer_case(settings, experts)
        whole = gradients_of(lambda case=case: layer_forward(case), [case.x_BLD, *case.layer.parameters()])
        for name, work in parts(case).items():
            yield Row(
                benchmark="router",
                case=f"{name}, {experts} experts",
                peer="the whole layer",
                comparison=compare(work, whole, clock=clock_of(settings.device), rounds=settings.rounds),
            )


def parts(case: LayerCase) -> dict[str, Callable[[], object]]:
    """Route, dispatch, experts and combine, each as work of its own."""
    routing, layer = case.route(), case.layer
    index = buffer_index(routing)
    x_GSD = _leaf(case.x_GSD)
    rows = _leaf(layer.exchange.to_experts(dispatch(x_GSD, index)))
    out = layer.experts(rows, capacity=routing.capacity, noise=None)
    buffer = _leaf(layer.exchange.from_experts(out, groups=len(x_GSD)))
    gates = _leaf(routing.gates_GSK.to(x_GSD.dtype))

    def route() -> list[Tensor]:
        found = case.route()
        return [found.gates_GSK, found.aux_loss, found.z_sum]

    return {
        "route": gradients_of(route, [case.x_BLD, layer.router.weight]),
        "dispatch": gradients_of(lambda: [dispatch(x_GSD, buffer_index(routing))], [x_GSD]),
        "experts": gradients_of(
            lambda: [layer.experts(rows, capacity=routing.capacity, noise=None)], [rows, *layer.experts.parameters()]
        ),
        "combine": gradients_of(lambda: [combine(buffer, gates, index)], [buffer, gates]),
    }


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_()
