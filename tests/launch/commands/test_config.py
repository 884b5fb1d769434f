"""What `pointsman config` says of fields, and that the page of all of them is what it would write."""

from __future__ import annotations

from pathlib import Path

import pytest

from conf.reading.fields import leaf_types
from launch.cli import main
from launch.commands.explain import page
from launch.identity import ROOT


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["config", *words]) == 0
    return capsys.readouterr().out


def test_a_field_is_explained_with_its_value_under_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "train.steps=500", "--explain", "train.eval_every")
    assert text.startswith("train.eval_every: steps; null: a tenth of the run")
    assert "legal  a whole number or null" in text
    assert "value  null -> 50" in text
    assert "value  7" in said(capsys, "--explain=train.eval_every", "train.eval_every=7")
    assert "legal  switch, top_2, switch_max, expert_choice, ntlb" in said(capsys, "--explain", "moe.router")


def test_a_preset_brings_its_values(capsys: pytest.CaptureFixture[str]) -> None:
    assert "value  64\n" in said(capsys, "--explain", "model.d_model")
    assert "value  512\n" in said(capsys, "--explain", "model.d_model", "model=t5_small")


def test_a_section_lists_its_presets_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "--explain", "schedule", "schedule=cosine")
    assert "presets: constant, cosine, linear, rsqrt, t5, wsd" in text
    assert "schedule.name" in text
    assert "cosine" in text.split("schedule.name")[1].split("\n")[0]
    assert "train." not in text


def test_all_fields_are_listed_by_either_option(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "--fields", "model=t5_small")
    assert all(f"  {path} " in text for path in leaf_types())
    for words in (["--explain", "model=t5_small"], ["model=t5_small", "--explain"]):
        assert said(capsys, *words) == text


def test_a_field_is_explained_although_another_must_still_be_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert "globs of text" in said(capsys, "--explain", "data.files", "data=text")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["--explain", "modle"],
            "error: modle: got 'an unknown setting'; needs a field or one of the sections model, ",
        ),
        (["--explain", "train.stpes"], "error: train.stpes: "),
        (["--markdown", "x.md"], "error: --markdown: got 'x.md'; needs --fields as well"),
        (["--explain", "train.steps", "train.stpes=3"], "error: train.stpes: "),
    ],
)
def test_what_is_not_there_is_told(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", *words]) == 2
    assert capsys.readouterr().err.startswith(told)


def test_the_page_of_all_fields_is_up_to_date(tmp_path: Path) -> None:
    assert main(["config", "--fields", "--markdown", str(tmp_path / "fields.md")]) == 0
    written = (tmp_path / "fields.md").read_text()
    assert written == page()
    assert all(f"`{path}`" in written for path in leaf_types())
    assert written == (ROOT / "docs" / "fields.md").read_text(), "docs/fields.md is out of date: run `make fields`"
