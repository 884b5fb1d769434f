"""The generated block of docs/precision.md, from the runs' metrics, the routing of equal weights and the step times."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from conf.compose import load
from conf.schema import RunConfig
from measure.studies.arguments import provenance
from measure.studies.curve import Curve, curve_of, spread
from measure.studies.markdown import some_steps, table
from measure.studies.precision.cells import BF16, FP32, PRECISIONS, SELECTIVE, STUDY, TITLES, PrecisionStudy, cell_name
from measure.studies.precision.routing import Change, Observation, compare
from measure.studies.step_times import StepTimes
from trainer.report.sinks.jsonl import read_rows
from trainer.run_dir import RunDir

Observed = Mapping[int, Mapping[str, Observation]]  # seed -> precision -> the fp32 run's weights in it
Curves = dict[str, dict[int, Curve]]  # precision -> seed -> curve
PAIRS = ((FP32, SELECTIVE), (FP32, BF16), (SELECTIVE, BF16))
METRICS = {"eval/loss_text": "text tokens", "eval/loss": "all target tokens"}


def page(study: PrecisionStudy, times: StepTimes, observed: Observed) -> list[str]:
    """All lines of the block."""
    seeds = study.seeds
    cfg = load(RunDir(root=study.out / cell_name(FP32, seeds[0])).config)
    by_metric = {metric: read_curves(study.out, seeds, metric) for metric in METRICS}
    lines = [provenance(STUDY, study, PrecisionStudy(), where=times.where), "", _setting_line(cfg, seeds), ""]
    lines += ["### Trained in each precision", "", *loss_lines(by_metric)]
    lines += ["", "Text loss on the way, mean over seeds:", "", *curve_lines(by_metric["eval/loss_text"])]
    lines += ["", "Routers at the end, mean over seeds:", "", *trained_router_lines(study.out, seeds)]
    lines += ["", "### The fp32 runs' weights, evaluated in each precision", ""]
    lines += [*change_lines(observed), "", *router_lines(observed)]
    lines += ["", "### Speed", "", *speed_lines(times, seeds[0])]
    return lines


def read_curves(out: Path, seeds: Sequence[int], metric: str) -> Curves:
    """The validation curves of every run."""

    def curve(precision: str, seed: int) -> Curve:
        path = RunDir(root=out / cell_name(precision, seed)).metrics
        return curve_of(read_rows(path), metric, origin=path)

    return {precision: {seed: curve(precision, seed) for seed in seeds} for precision in PRECISIONS}


def _setting_line(cfg: RunConfig, seeds: Sequence[int]) -> str:
    schedule = cfg.schedule
    return (
        f"`{cfg.model.preset}` preset on `{cfg.data.source}` text: {cfg.moe.num_experts} experts, {cfg.train.steps} "
        f"steps of {cfg.train.global_batch} windows, {schedule.name} from {schedule.lr:g}, seeds "
        f"{', '.join(map(str, seeds))}; the same data in the same order in every run."
    )


def loss_lines(by_metric: Mapping[str, Curves]) -> list[str]:
    """Final losses, and their difference to the fp32 run of the same seed."""
    header, rows = ["precision"], [[TITLES[precision]] for precision in PRECISIONS]
    for metric, curves in by_metric.items():
        header += [f"final loss, {METRICS[metric]}", "minus fp32"]
        for row, by_seed in zip(rows, curves.values(), strict=True):
            differences = [curve.final - curves[FP32][seed].final for seed, curve in by_seed.items()]
            row += [spread(curve.final for curve in by_seed.values()).text(4), spread(differences).text(4)]
    for row in rows[:1]:
        row[2::2] = ["-"] * len(by_metric)
    return table(header, rows)


def curve_lines(curves: Curves) -> list[str]:
    """Mean loss over seeds at some ten steps."""
    rows = []
    for step in some_steps(next(iter(curves[FP32].values())).steps):
        means = [spread(curve.losses[curve.steps.index(step)] for curve in s.values()).mean for s in curves.values()]
        rows.append([str(step), *(f"{mean:.4f}" for mean in means)])
    return table(["step", *(TITLES[precision] for precision in curves)], rows)


def trained_router_lines(out: Path, seeds: Sequence[int]) -> list[str]:
    """Router metrics of every run's last evaluation: of these, unlike of choices, means can be compared over runs."""
    names = {
        "entropy": "router entropy",
        "confidence": "mean gate",
        "dropped": "dropped",
        "imbalance": "fullest expert",
    }
    rows = []
    for precision in PRECISIONS:
        paths = [RunDir(root=out / cell_name(precision, seed)).metrics for seed in seeds]
        last = [[row for row in read_rows(path) if "eval/dropped" in row][-1] for path in paths]
        layers = [key.split("/")[1] for key in last[0] if key.startswith("router/") and key.endswith("/entropy")]
        for layer in layers:
            means = [spread(row[f"router/{layer}/{name}"] for row in last).mean for name in names]
            rows.append([TITLES[precision], layer, *(f"{mean:.4f}" for mean in means)])
    return table(["trained in", "layer", *names.values()], rows)


def change_lines(observed: Observed) -> list[str]:
    """Flips, slots and gates of every pair of precisions, layer by layer, means over the seeds' checkpoints."""
    rows = []
    for first, second in PAIRS:
        for layer in next(iter(observed.values()))[first].layers:
            changes = [compare(by[first].layers[layer], by[second].layers[layer]) for by in observed.values()]
            rows.append([f"{TITLES[first]} / {TITLES[second]}", layer, *_change_cells(changes)])
    header = ["precisions", "layer", "tokens flipped", "slot won or lost", "gate error", "gap of flipped", "gap of all"]
    return table(header, rows)


def _change_cells(changes: list[Change]) -> list[str]:
    def mean(value: Callable[[Change], float]) -> float:
        return spread(map(value, changes)).mean

    gaps = [change.gap_flipped for change in changes if change.gap_flipped is not None]
    return [
        f"{100 * mean(lambda c: c.flipped):.3f}%",
        f"{100 * mean(lambda c: c.kept_changed):.3f}%",
        f"{mean(lambda c: c.gate_error):.2e}",
        f"{spread(gaps).mean:.2e}" if gaps else "-",
        f"{mean(lambda c: c.gap_all):.2e}",
    ]


def router_lines(observed: Observed) -> list[str]:
    """Losses and router metrics of ordinary evaluations of the same weights, means over the seeds' checkpoints."""
    rows = []
    for precision in PRECISIONS:
        reports = [by[precision].report for by in observed.values()]
        text = spread(report.loss_text for report in reports).mean
        for layer in range(len(reports[0].layers)):
            layers = [report.layers[layer] for report in reports]
            entropy, confidence = (spread(getattr(x, name) for x in layers).mean for name in ("entropy", "confidence"))
            dropped = spread(x.dropped for x in layers).mean
            cells = [f"{text:.4f}", f"{entropy:.4f}", f"{confidence:.4f}", f"{100 * dropped:.3f}%"]
            rows.append([TITLES[precision], layers[0].name, *cells])
    return table(["evaluated in", "layer", "text loss", "router entropy", "mean gate", "dropped"], rows)


def speed_lines(times: StepTimes, seed: int) -> list[str]:
    """Medians of steps taken in turns."""
    base = cell_name(FP32, seed)
    rows = []
    for precision in PRECISIONS:
        name = cell_name(precision, seed)
        rows.append([TITLES[precision], f"{times.median(name):.4f}", f"{times.ratio(name, base):.2f}"])
    return table(["precision", "s a step (median)", "step time to fp32"], rows)
