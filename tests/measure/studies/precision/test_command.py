"""The precision study's grid and tables, from decisions and curves made by hand."""

import json
from types import SimpleNamespace

import torch

from conf.compose import compose
from measure.studies.curve import Curve
from measure.studies.precision import cells as precision
from measure.studies.precision.cells import BF16, FP32, SELECTIVE
from measure.studies.precision.page import (
    change_lines,
    curve_lines,
    loss_lines,
    router_lines,
    speed_lines,
    trained_router_lines,
)
from measure.studies.precision.routing import LayerChoices
from measure.studies.step_times import StepTimes
from tests.measure.studies.tiny import TINY


def curves(fp32, selective, bf16):
    """Two seeds each, of which the second ends 0.5 higher."""

    def two(final):
        return {1: Curve(steps=(0, 4), losses=(6.0, final)), 2: Curve(steps=(0, 4), losses=(6.0, final + 0.5))}

    return {FP32: two(fp32), SELECTIVE: two(selective), BF16: two(bf16)}


def observation(choice):
    choice_N = torch.tensor(choice)
    ones_N = torch.ones(len(choice))
    layer = LayerChoices(choice_N=choice_N, gate_N=ones_N / 2, gap_N=ones_N, kept_N=choice_N > 0)
    routed = SimpleNamespace(name="encoder.1", entropy=1.5, confidence=0.25, dropped=0.125)
    return SimpleNamespace(layers={"encoder.1": layer}, report=SimpleNamespace(loss_text=5.0, layers=(routed,)))


OBSERVED = {
    seed: {FP32: observation([1, 1, 1, 1]), SELECTIVE: observation([1, 1, 1, 1]), BF16: observation([1, 1, 2, last])}
    for seed, last in ((1, 1), (2, 0))
}


def test_three_precisions_of_one_run():
    arguments = precision.PrecisionStudy(overrides=TINY[:-1], steps=20, seeds=(5,))
    cells = precision.cells(arguments)
    assert [cell.name for cell in cells] == ["fp32-s5", "bf16_router_fp32-s5", "bf16-s5"]
    fp32, selective, bf16 = (compose(cell.arguments(arguments.out)) for cell in cells)
    assert [cfg.train.precision for cfg in (fp32, selective, bf16)] == ["fp32", "bf16", "bf16"]
    assert [cfg.moe.router_precision for cfg in (fp32, selective, bf16)] == ["fp32", "fp32", "activation"]
    assert fp32.data == selective.data == bf16.data
    assert fp32.schedule == selective.schedule == bf16.schedule
    assert fp32.seed == selective.seed == bf16.seed == 5


def test_losses_are_compared_seed_by_seed():
    lines = loss_lines({"eval/loss_text": curves(5.0, 5.25, 5.5)})[2:]
    assert lines[0] == "| fp32 | 5.2500 +- 0.3536 | - |"
    assert lines[1].endswith("| 5.5000 +- 0.3536 | 0.2500 +- 0.0000 |")
    assert lines[2].endswith("| 5.7500 +- 0.3536 | 0.5000 +- 0.0000 |")


def test_the_way_there():
    assert curve_lines(curves(5.0, 5.25, 5.5))[2:] == [
        "| 0 | 6.0000 | 6.0000 | 6.0000 |",
        "| 4 | 5.2500 | 5.5000 | 5.7500 |",
    ]


def test_flips_are_means_over_checkpoints_for_every_pair():
    none, some, between = (line.split(" | ")[2:] for line in change_lines(OBSERVED)[2:])
    assert none[:2] == ["0.000%", "0.000%"]
    assert none[3] == "-"  # nothing flips, so nothing has a gap
    assert some[:2] == between[:2] == ["37.500%", "12.500%"]  # 1 and 2 of 4 tokens; 0 and 1 slots


def test_router_metrics_of_equal_weights():
    assert router_lines(OBSERVED)[2] == "| fp32 | encoder.1 | 5.0000 | 1.5000 | 0.2500 | 12.500% |"


def test_routers_at_the_end_of_training(tmp_path):
    names = ("entropy", "confidence", "dropped", "imbalance")
    for number, cell in enumerate(precision.cells(precision.PrecisionStudy(seeds=(1, 2)))):
        run = cell.run(tmp_path)
        run.root.mkdir()
        early, late = ({f"router/decoder.1/{name}": value for name in names} for value in (9.0, float(number)))
        rows = [{"step": 0, "eval/dropped": 0.0, **early}, {"step": 4, "eval/dropped": 0.0, **late}, {"step": 4}]
        run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = trained_router_lines(tmp_path, [1, 2])[2:]
    assert lines[0] == "| fp32 | decoder.1 | 1.5000 | 1.5000 | 1.5000 | 1.5000 |"  # runs 0 and 3
    assert lines[2] == "| bf16 everywhere | decoder.1 | 3.5000 | 3.5000 | 3.5000 | 3.5000 |"


def test_speed():
    names = [precision.cell_name(kind, 1) for kind in precision.PRECISIONS]
    times = StepTimes(seconds=dict(zip(names, ([1.0, 3.0], [2.0, 6.0], [0.5, 1.5]), strict=True)), where="here")
    assert [line.split(" | ")[1:] for line in speed_lines(times, 1)[2:]] == [
        ["2.0000", "1.00 |"], ["4.0000", "2.00 |"], ["1.0000", "0.50 |"],
    ]  # fmt: skip
