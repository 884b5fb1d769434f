"""The headline's grid and the block it writes, from metrics made by hand."""

import json

import pytest

from conf.compose import compose, dump
from conf.derived.layers import is_dense
from measure.studies.headline import cells as headline
from measure.studies.headline.page import page, read_curves, result_lines
from measure.studies.step_times import StepTimes
from tests.measure.studies.tiny import TINY

# Text losses at steps 0, 10, 20: two experts reach the dense 4.0 at step 10, four experts never do.
LOSSES = {"dense": (6.0, 5.0, 4.0), "switch2": (6.0, 4.0, 3.0), "switch4": (6.0, 5.5, 4.5)}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A finished grid of one seed, and its arguments."""
    out = tmp_path_factory.mktemp("headline")
    overrides = (*TINY[:-1], "model=small")
    arguments = headline.Headline(
        overrides=overrides, out=out, steps=20, seeds=(1,), experts=(2, 4), eval_every=10, warmup=2
    )
    for cell in headline.cells(arguments):
        run = cell.run(out)
        run.root.mkdir()
        dump(compose(cell.arguments(out)), run.config)
        losses = LOSSES[cell.name.partition("-")[0]]
        rows = [{"step": 10 * i, "eval/loss_text": loss, "eval/loss": loss - 1} for i, loss in enumerate(losses)]
        rows.append({"step": 20, "train/epoch": 0.25, "eval/target_tokens": 5120.0})
        run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return arguments


def test_a_grid_is_every_size_and_the_dense_twin_for_every_seed():
    arguments = headline.Headline(seeds=(1, 2), experts=(2, 16))
    cells = headline.cells(arguments)
    assert [cell.name for cell in cells[:3]] == ["dense-s1", "switch2-s1", "switch16-s1"]
    assert len(cells) == 6


def test_the_model_is_one_whose_experts_matter_unless_another_is_asked_for():
    def models(*words):
        return {compose(cell.arguments(cell_out)).model.preset for cell in headline.cells(study_of(*words))}

    def study_of(*words):
        return headline.Headline(overrides=words, seeds=(1,), experts=(2,))

    cell_out = study_of().out
    assert models() == {"small_long"}
    assert models("model=small") == {"small"}


def test_runs_differ_in_experts_alone(study):
    dense, two, four = (compose(cell.arguments(study.out)) for cell in headline.cells(study))
    assert is_dense(dense)
    assert (two.moe.num_experts, four.moe.num_experts) == (2, 4)
    assert dense.data == two.data == four.data
    assert dense.optim == two.optim == four.optim
    assert dense.schedule == two.schedule == four.schedule
    assert dense.train == two.train == four.train
    assert two.schedule.name == "rsqrt"
    assert two.moe.group_sequences == 8  # the whole batch: as large as the semantics allow


def test_rows_of_the_table(study):
    curves = read_curves(study.out, study.experts, study.seeds, "eval/loss_text")
    rows = result_lines(curves, {1: 1.0, 2: 1.6, 4: 1.6})[2:]
    assert rows == [
        "| dense | 4.000 | 4.000 | 1.00x | - |",
        "| Switch, 2 experts | 3.000 | 3.750 | 2.00x | 1.25x |",
        "| Switch, 4 experts | 4.500 | 5.250 | not reached | not reached |",
    ]


def test_the_page_says_what_was_run_and_shows_both_metrics(study):
    times = StepTimes(
        seconds={"dense-s1": [0.1, 0.2], "switch2-s1": [0.15, 0.3], "switch4-s1": [0.2, 0.4]}, where="a test"
    )
    text = "\n".join(page(study, times))
    assert "timed on a test" in text
    assert "20 steps (0.25 passes over the text)" in text
    assert "(5,120 target tokens)" in text
    assert "| Switch, 4 experts | 99,200 | 1.005 | 1.25, 1.25 | 0.3000 | 2.00 |" in text
    assert "| 10 | 5.000 | 4.000 | 5.500 |" in text
    assert "| 10 | 4.000 | 3.000 | 4.500 |" in text  # the second metric
