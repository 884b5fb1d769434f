"""The routing table: who got the tokens, layer by layer, in a form that fits a terminal."""

from __future__ import annotations

from trainer.report.metrics import LayerReport, Report

_BARS = " .:-=+*#%@"
_COLUMNS = 32  # experts shown one by one; more are pooled into this many columns


def load_bar(load: tuple[float, ...]) -> str:
    """One character per expert (or pool of neighbours): ' ' empty, '=' about an even share, '@' twice it or more."""
    pools = min(len(load), _COLUMNS)
    size = len(load) / pools
    pooled = [load[int(i * size) : int((i + 1) * size)] for i in range(pools)]
    relative = [sum(pool) / len(pool) * len(load) for pool in pooled]
    return "".join(_BARS[min(int(value / 2 * (len(_BARS) - 1) + 0.5), len(_BARS) - 1)] for value in relative)


def _row(layer: LayerReport, capacity_factor: float) -> str:
    flag = "  <- many empty slots" if layer.slots_per_token > 2 * capacity_factor else ""
    return (
        f"{layer.name:<12} [{load_bar(layer.load)}] {min(layer.load):6.1%} {max(layer.load):6.1%} "
        f"{layer.dropped:8.2%} {layer.slots_per_token:7.2f} {layer.entropy:8.2f} {layer.confidence:6.2f}{flag}"
    )


def routing_table(report: Report, *, capacity_factor: float) -> str:
    """Per layer: load per expert, smallest and largest share, dropped share, slots per token, entropy, mean gate."""
    if not report.layers:
        return "dense model: no routing"
    width = min(len(report.layers[0].load), _COLUMNS) + 2
    header = f"{'layer':<12} {'load':<{width}} {'min':>6} {'max':>6} "
    header += f"{'dropped':>8} {'slots/t':>7} {'entropy':>8} {'gate':>6}"
    return "\n".join([header, *(_row(layer, capacity_factor) for layer in report.layers)])
