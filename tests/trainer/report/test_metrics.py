"""Sums, reductions and derived numbers of `trainer.report.metrics`, against arithmetic a reader can do by hand."""

import math
from pathlib import Path

import pytest
import torch

from data.tasks.task import TokenKind, text_kind
from data.text.vocabulary import appended
from model.contract import ModelOutput
from model.losses import LossParts
from model.moe.types import LayerRouting, RouterStats
from parallel.mesh.axes import single_process
from tests.harness import run_ranks
from trainer.report.metrics import LAYER_METRICS, Meter, flat_metrics, router_metrics


def routing(load, kept, *, tokens, groups=1.0, aux=1.0):
    stats = RouterStats(
        load_E=torch.tensor(load),
        probability_E=torch.tensor([tokens / len(load)] * len(load)),
        kept_E=torch.tensor(kept),
        tokens=torch.tensor(tokens),
        routed=torch.tensor(sum(kept)),
        entropy=torch.tensor(tokens * 0.5),
        confidence=torch.tensor(tokens * 0.75),
        slots=torch.tensor(tokens * 2.0),
        groups=torch.tensor(groups),
        aux=torch.tensor(aux),
        z=torch.tensor(tokens * 3.0),
    )
    zero = torch.tensor(0.0)
    return LayerRouting(aux_loss=torch.tensor(aux), z_sum=zero, positions=8, groups=int(groups), stats=stats)


def output(losses, layers):
    return ModelOutput(token_loss_BT=torch.tensor(losses), routing={"encoder": tuple(layers)})


KINDS = {"text": text_kind(appended(100, 20)), "sentinel": TokenKind(100, 120)}
PARTS = LossParts(total=torch.tensor(9.0), ce=torch.tensor(0.5), aux=torch.tensor(0.25), z=torch.tensor(0.125))
# ids: 0 padding, 1 EOS, 5 text, 101 sentinel (pieces = 100)
TARGETS = torch.tensor([[101, 5, 5, 1], [101, 5, 0, 0]])
LOSSES = [[1.0, 2.0, 4.0, 8.0], [3.0, 6.0, 0.0, 0.0]]


def test_text_sentinels_and_eos_are_told_apart():
    meter = Meter(kinds=KINDS, layer_names=())
    meter.add(output(LOSSES, []), TARGETS, PARTS)
    report = meter.reduce(single_process())
    assert report.tokens == 6
    assert report.loss == pytest.approx((1 + 2 + 4 + 8 + 3 + 6) / 6)
    assert report.loss_text == pytest.approx((2 + 4 + 6) / 3)
    assert report.by_kind["sentinel"] == pytest.approx((1 + 3) / 2)
    assert report.aux_loss == 0.25
    assert flat_metrics("eval", report)["eval/loss_text"] == report.loss_text


def test_two_micro_batches_add_up():
    meter = Meter(kinds=KINDS, layer_names=("encoder.1",))
    meter.add(output(LOSSES, [routing([3.0, 1.0], [2.0, 1.0], tokens=4.0)]), TARGETS, PARTS)
    meter.add(output(LOSSES, [routing([1.0, 5.0], [1.0, 4.0], tokens=6.0, aux=3.0)]), TARGETS, PARTS)
    report = meter.reduce(single_process())
    layer = report.layers[0]
    assert report.aux_loss == 0.5
    assert layer.load == pytest.approx((0.4, 0.6))
    assert layer.dropped == pytest.approx(1 - 8 / 10)
    assert LAYER_METRICS["imbalance"](layer) == pytest.approx(1.2)
    assert layer.aux == pytest.approx(2.0)  # (1 + 3) / 2 groups
    assert (layer.entropy, layer.confidence, layer.z, layer.slots_per_token) == pytest.approx((0.5, 0.75, 3.0, 2.0))
    assert report.dropped == layer.dropped


def test_router_metrics_have_stable_names():
    meter = Meter(kinds=KINDS, layer_names=("decoder.3",))
    meter.add(output(LOSSES, [routing([3.0, 1.0], [2.0, 1.0], tokens=4.0)]), TARGETS, None)
    report = meter.reduce(single_process())
    assert set(router_metrics(report, prefix="router", per_expert=True)) == {
        f"router/decoder.3/{name}"
        for name in ("load", "probability", "dropped", "entropy", "confidence", "z", "aux", "imbalance")
    }
    assert "router/decoder.3/load" not in router_metrics(report, prefix="router", per_expert=False)


def test_a_metric_that_is_registered_is_logged(monkeypatch):
    monkeypatch.setitem(LAYER_METRICS, "coldest", lambda layer: min(layer.load))
    meter = Meter(kinds=KINDS, layer_names=("encoder.1",))
    meter.add(output(LOSSES, [routing([3.0, 1.0], [2.0, 1.0], tokens=4.0)]), TARGETS, None)
    logged = router_metrics(meter.reduce(single_process()), prefix="router", per_expert=False)
    assert logged["router/encoder.1/coldest"] == 0.25


def test_every_metric_of_a_layer_has_a_line_on_the_page_of_metrics():
    page = (Path(__file__).resolve().parents[3] / "docs" / "metrics.md").read_text()
    assert [name for name in LAYER_METRICS if f"`router/<stack>.<layer>/{name}`" not in page] == []


def test_a_nan_is_noticed():
    meter = Meter(kinds=KINDS, layer_names=())
    meter.add(output([[math.nan, 1.0]], []), torch.tensor([[5, 5]]), PARTS)
    assert not meter.finite()


def _reduce_on_ranks(rank, world):
    from conf.compose import compose
    from parallel.mesh.groups import init_groups

    mesh = init_groups(compose(["parallel=data", "moe=dense"]).parallel)
    meter = Meter(kinds=KINDS, layer_names=("encoder.1",))
    load = [4.0, 0.0] if rank == 0 else [0.0, 2.0]
    meter.add(output(LOSSES, [routing(load, load, tokens=sum(load))]), TARGETS, PARTS)
    report = meter.reduce(mesh)
    return report.tokens, report.aux_loss, report.layers[0].load


def test_ranks_add_up():
    for tokens, aux, load in run_ranks(_reduce_on_ranks, 2):
        assert tokens == 12
        assert aux == 0.5
        assert load == pytest.approx((4 / 6, 2 / 6))
