"""The command: its words, its exit codes, its table and its report."""

import json

import pytest

import tests.harness  # noqa: F401 - its server of forks, with everything imported, serves here too
from conf.errors import ConfigError
from launch import cli
from measure.verify import report
from measure.verify import run_plan as verify
from measure.verify import verify_parallel as command
from measure.verify.compare import Error, Findings
from measure.verify.planning.layouts import Layout
from measure.verify.run_plan import Verdict
from tests.measure.verify.tiny import TINY, plan

LAYOUT = Layout(tp=2, dp=1, ep=1, etp=2, zero=1, accumulation=1, recompute=False)


def verdict(**settings) -> Verdict:
    return Verdict(**{"layout": LAYOUT, "status": "equal", "seconds": 1.0, "findings": Findings(), **settings})


def spoiled() -> Verdict:
    error = Error(quantity="gradient", error=0.5, where="encoder.layers.1.ff.experts.wi", step=1, position=3)
    return verdict(
        status="differs",
        findings=Findings(worst={"gradient": error}, first=error, past={"1 gradient": {error.where, "other"}}),
    )


def test_overrides_behind_layouts_are_told_apart():
    words = [
        "tp=2 ep=2",
        "zero=1",
        "model=small",
        "train.global_batch=16",
        "acc=2",
        "recompute",
        "--steps",
        "2",
        "seed=3",
    ]
    typed = command.command.make_context("verify-parallel", ["moe=hf", "--layouts", *words]).params
    assert typed["layouts"] == ("tp=2 ep=2", "zero=1", "acc=2", "recompute")
    assert typed["overrides"] == ("moe=hf", "model=small", "train.global_batch=16", "seed=3")
    assert typed["steps"] == 2


@pytest.mark.parametrize(
    "words",
    [["--ranks", "0"], ["--steps", "0"], ["--all", "--layouts", "tp=2"], ["--report", "no/such/folder/r.json"],
     ["--layouts", "pp=2"], ["no.such.field=1"], ["--layouts", "tp=2", "ep=3 dp=3"]],
)  # fmt: skip
def test_what_cannot_be_run_is_refused(words):
    with pytest.raises(ConfigError):
        cli.run(["verify-parallel", *words])


@pytest.mark.slow
def test_a_run_prints_its_table_and_writes_its_report(tmp_path, capsys):
    file = tmp_path / "report.json"
    words = [*TINY, "--steps", "1", "--ranks", "2", "--report", str(file), "--layouts", "ep=2 zero=1"]
    assert cli.run(["verify-parallel", *words]) == 0
    printed = capsys.readouterr().out
    for text in (
        "changed for this: model.dropout=0.1",
        "tp=1 dp=2 ep=2",
        "all 1 layouts equal one process",
    ):
        assert text in printed, printed
    tree = json.loads(file.read_text())
    assert tree["equal"] is True
    assert [each["status"] for each in tree["layouts"]] == ["equal"]
    assert tree["layouts"][0]["layout"]["ep"] == 2
    assert tree["layouts"][0]["largest"]["gradient"]["error"] < tree["limits"]["gradient"]
    assert tree["left_out"] == []


def test_a_difference_ends_in_exit_code_1(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(verify, "verify", lambda made, *, say: [say(spoiled()) or spoiled()])
    assert command.run(plan("tp=2"), tmp_path / "r.json") == 1
    printed = capsys.readouterr().out
    assert "first to differ: gradient of encoder.layers.1.ff.experts.wi in step 2: 5.00e-01" in printed
    assert "gradient of others as well: other" in printed
    assert "1 of 1 layouts do NOT equal one process" in printed
    assert json.loads((tmp_path / "r.json").read_text())["layouts"][0]["first"]["quantity"] == "gradient"


def test_ties_and_failures_are_told():
    lines = report.row(verdict(ties=2, findings=Findings()))
    assert any("tie: 2 tokens" in line for line in lines)
    failed = report.row(verdict(status="failed", message="rank 1 hung\nat line 3"))
    assert "FAILED" in failed[0]
    assert failed[1:] == ["    rank 1 hung", "    at line 3"]


def output(where: str) -> Error:
    return Error(quantity="output", error=0.1, where=where, step=1, position=0)


@pytest.mark.parametrize(
    ("first", "where", "leads"),
    [
        ("routing", "encoder.1", {"shared", "encoder.layers.0.ff", "encoder.layers.1.self_attention"}),
        ("routing", "decoder.1", {"encoder.final_norm", "decoder_embedding", "decoder.layers.1.cross_attention"}),
        ("aux", "", {"encoder.layers.1.ff", "decoder.final_norm"}),
        ("gradient", "encoder.layers.0.ff.wi.weight", {"encoder.layers.0.ff, recomputed"}),
    ],
)
def test_an_output_leads_what_comes_after_it(first, where, leads):
    places = ["shared", "encoder.layers.0.ff", "encoder.layers.1.self_attention", "encoder.layers.1.ff"]
    places += ["encoder.final_norm", "decoder_embedding", "decoder.layers.1.cross_attention", "decoder.layers.1.ff"]
    places += ["decoder.final_norm", "encoder.layers.0.ff, recomputed"]
    error = Error(quantity=first, error=0.5, where=where, step=1, position=3)
    told = {place: report.describe_first(Findings(first=error, output=output(place))) for place in sorted(places)}
    shown = {place for place, text in told.items() if text.startswith(f"output of {place} in step 2: 1.00e-01; then")}
    assert leads <= shown
    after = {"encoder.1": {"encoder.layers.1.ff", "decoder_embedding"}, "decoder.1": {"decoder.layers.1.ff"}}
    assert not shown & after.get(where, set())
    assert first != "gradient" or shown == leads
    assert report.describe(error) in told["shared"]


def test_every_layout_left_out_is_accounted_for():
    made = plan(ranks=8)
    few = [each for each in made.refused if "moe.num_experts" in each.reason]
    assert len(few) > 1
    assert any(f"and {len(few) - 1} more: moe.num_experts" in line for line in report.opening(made))
