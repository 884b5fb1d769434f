"""The routing table says what the numbers say."""

from trainer.report.metrics import LayerReport, Report
from trainer.report.routing_table import load_bar, routing_table


def layer(name, load, *, slots=1.25):
    return LayerReport(
        name=name,
        load=tuple(load),
        probability=tuple(load),
        dropped=0.125,
        slots_per_token=slots,
        entropy=1.5,
        confidence=0.5,
        aux=1.0,
        z=2.0,
    )


def report(*layers):
    return Report(
        loss=1.0, aux_loss=0.0, z_loss=0.0, by_kind={"text": 1.0, "sentinel": 1.0}, tokens=8.0, layers=tuple(layers)
    )


def test_bar_shows_starved_even_and_overloaded():
    even = load_bar((0.25,) * 4)[0]
    assert even not in " @"
    assert load_bar((0.0, 0.25, 0.25, 0.5)) == f" {even}{even}@"


def test_many_experts_are_pooled():
    bar = load_bar((1 / 2048,) * 2048)
    assert len(bar) == 32
    assert len(set(bar)) == 1


def test_rows_name_layers_and_drops():
    text = routing_table(report(layer("encoder.1", [0.5, 0.5]), layer("decoder.1", [1.0, 0.0])), capacity_factor=2.0)
    lines = text.splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("encoder.1")
    assert "12.50%" in lines[1]
    assert " 0.0% 100.0%" in lines[2]
    assert "empty slots" not in text


def test_wasted_slots_are_flagged():
    assert "empty slots" in routing_table(report(layer("encoder.1", [1.0], slots=5.0)), capacity_factor=2.0)


def test_dense_model_has_no_table():
    assert routing_table(report(), capacity_factor=1.0) == "dense model: no routing"
