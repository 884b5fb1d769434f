"""The generated block of docs/headline.md, from the runs' metrics and the step times."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conf.compose import load
from conf.derived.estimate import flops_per_sequence, num_params
from conf.derived.groups import slots_per_token
from conf.derived.layers import is_dense, stacks
from conf.schema import RunConfig
from measure.studies.arguments import provenance
from measure.studies.curve import Curve, Spread, curve_of, spread
from measure.studies.headline.cells import DENSE, METRICS, STUDY, Headline, cell_name
from measure.studies.headline.results import Result, compare
from measure.studies.markdown import some_steps, table
from measure.studies.step_times import StepTimes
from trainer.report.sinks.jsonl import read_rows
from trainer.run_dir import RunDir

Curves = dict[int, dict[int, Curve]]  # experts -> seed -> curve


def read_curves(out: Path, experts: Sequence[int], seeds: Sequence[int], metric: str) -> Curves:
    """The validation curves of every run of the grid."""

    def curve(size: int, seed: int) -> Curve:
        path = RunDir(root=out / cell_name(size, seed)).metrics
        return curve_of(read_rows(path), metric, origin=path)

    return {size: {seed: curve(size, seed) for seed in seeds} for size in (DENSE, *experts)}


def page(study: Headline, times: StepTimes) -> list[str]:
    """All lines of the block."""
    out, seeds, first = study.out, study.seeds, study.seeds[0]
    sizes = [DENSE, *study.experts]
    configs = {size: load(RunDir(root=out / cell_name(size, first)).config) for size in sizes}
    seconds = {size: times.median(cell_name(size, first)) for size in sizes}
    ratios = {size: times.ratio(cell_name(size, first), cell_name(DENSE, first)) for size in sizes}
    rows = read_rows(RunDir(root=out / cell_name(DENSE, first)).metrics)
    epochs, held_out = _newest(rows, "train/epoch"), _newest(rows, "eval/target_tokens")
    lines = [provenance(STUDY, study, Headline(), where=times.where), ""]
    lines += [setting_line(configs[DENSE], seeds, epochs=epochs, held_out=held_out), ""]
    lines += _size_lines(configs, seconds, ratios)
    for metric in METRICS:
        curves = read_curves(out, study.experts, seeds, metric)
        lines += ["", f"### {title(metric)}", "", *result_lines(curves, ratios)]
        lines += ["", *curve_lines(curves)]
    return lines


def title(metric: str) -> str:
    """What a metric is, in words."""
    return {"eval/loss_text": "Text tokens", "eval/loss": "All target tokens"}[metric] + f" (`{metric}`)"


def _newest(rows: list[dict[str, Any]], metric: str) -> float:
    return [row[metric] for row in rows if metric in row][-1]


def setting_line(cfg: RunConfig, seeds: Sequence[int], *, epochs: float, held_out: float) -> str:
    """What was trained, from the dense run's own configuration; `held_out` target tokens are in every evaluation."""
    model, schedule = cfg.model, cfg.schedule
    return (
        f"Every run: `{cfg.data.source}` text, windows of {cfg.data.encoder_length} encoder and "
        f"{cfg.data.decoder_length} target tokens, {cfg.train.global_batch} a step, {cfg.train.steps} steps "
        f"({epochs:.2f} passes over the text); d_model {model.d_model}, d_ff {model.d_ff}, "
        f"{model.num_encoder_layers} + {model.num_decoder_layers} layers, "
        f"{cfg.optim.name}, {schedule.name} from {schedule.lr:g} after {schedule.warmup_steps} steps of warm-up, "
        f"{cfg.train.precision}. The seeds ({', '.join(map(str, seeds))}) change weights and jitter; data, its order "
        f"and the held-out text ({held_out:,.0f} target tokens) are the same in every run."
    )


def _size_lines(configs: dict[int, RunConfig], seconds: dict[int, float], ratios: dict[int, float]) -> list[str]:
    base = flops_per_sequence(configs[DENSE])
    rows = []
    for size, cfg in configs.items():
        params, flops = num_params(cfg.model, cfg.moe), flops_per_sequence(cfg) / base
        times = [f"{seconds[size]:.4f}", f"{ratios[size]:.2f}"]
        rows.append([model_name(size), f"{params:,}", f"{flops:.3f}", _slots_text(cfg), *times])
    header = ["model", "parameters", "FLOPs to dense", "expert rows a token", "s a step (median)", "step time to dense"]
    return table(header, rows)


def _slots_text(cfg: RunConfig) -> str:
    """Buffer rows computed per token in training, empty ones included: encoder, decoder."""
    if is_dense(cfg):
        return "-"
    return ", ".join(f"{slots_per_token(cfg, stack, train=True):.2f}" for stack in stacks(cfg.model, cfg.moe))


def result_lines(curves: Curves, ratios: dict[int, float]) -> list[str]:
    """Losses and speed-ups; `ratios` are step times relative to the dense model's.

    The dense model's own step speed-up is the first touch of its final loss: what noise in a curve alone is worth.
    """
    rows = []
    for size, by_seed in curves.items():
        result = compare(curves[DENSE], by_seed, dense_seconds=1.0, other_seconds=ratios[size])
        times = "-" if size == DENSE else factor_text(result.time_speed_up, result)
        losses = [result.final.text(), loss_text(result.equal_time)]
        rows.append([model_name(size), *losses, factor_text(result.step_speed_up, result), times])
    return table(["model", "loss at equal steps", "loss at equal time", "step speed-up", "time speed-up"], rows)


def model_name(size: int) -> str:
    """Row label."""
    return "dense" if size == DENSE else f"Switch, {size} experts"


def loss_text(loss: Spread | None) -> str:
    """A loss at equal time, or why there is none."""
    return "run too short" if loss is None else loss.text()


def factor_text(factor: Spread | None, result: Result) -> str:
    """A speed-up with how many seeds got there unless all did."""
    if factor is None:
        return "not reached"
    some = "" if result.reached == result.seeds else f" ({result.reached} of {result.seeds} seeds)"
    return f"{factor.text(2)}x{some}"


def curve_lines(curves: Curves) -> list[str]:
    """Mean loss over seeds at some ten steps."""
    rows = []
    for step in some_steps(next(iter(curves[DENSE].values())).steps):
        losses = [[curve.at(step) for curve in by_seed.values()] for by_seed in curves.values()]
        rows.append([str(step), *(_mean_text(of_size) for of_size in losses)])
    return table(["step", *(model_name(size) for size in curves)], rows)


def _mean_text(losses: list[float | None]) -> str:
    known = [loss for loss in losses if loss is not None]
    return f"{spread(known).mean:.3f}" if len(known) == len(losses) else "-"
