"""A command that is added: one file, one row, and everything that comes with it (docs/extending.md)."""

from __future__ import annotations

import click
import pytest

from launch.commands.kinds import Group
from launch.commands.parameters import spread
from launch.commands.table import Row
from launch.commands.usage import in_our_words
from tests.launch.commands import greet

ROWS = (Row("greet", "tests.launch.commands.greet", "greet a run"),)


@click.group(cls=Group, rows=ROWS)
def tool() -> None:
    """A tool of one command."""


def run(*words: str) -> int:
    with tool.make_context("tool", list(words)) as ctx:
        return tool.invoke(ctx)


@pytest.mark.parametrize(
    "words",
    [
        ("runs/x", "--times", "2", "seed=3", "moe=hf"),
        ("--times=2", "runs/x", "seed=3", "moe=hf"),
        ("runs/x", "seed=3", "moe=hf", "--times", "2"),
        ("runs/x", "seed=3", "--times", "2", "moe=hf"),
    ],
)
def test_it_takes_its_words_in_any_order(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("greet", *words) == 0
    assert capsys.readouterr().out == "hello x seed=3 moe=hf\n" * 2


def test_it_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(click.exceptions.Exit):
        run("greet", "--help")
    text = capsys.readouterr().out
    for part in (
        "usage: tool greet [OPTIONS] RUN [OVERRIDE]...",
        "Greet a run.",
        "--times N",
        "  pointsman greet runs/",
    ):
        assert part in text
    with pytest.raises(click.exceptions.Exit):
        run("--help")
    assert "  greet  greet a run" in capsys.readouterr().out


def test_its_errors_are_told_like_all_others() -> None:
    with pytest.raises(click.NoSuchCommand) as caught:
        run("great", "runs/x")
    assert str(in_our_words(caught.value, [])) == "command: got 'great'; needs one of greet; try tool greet"
    with pytest.raises(click.NoSuchOption) as unknown:
        run("greet", "runs/x", "--tims", "2")
    assert str(in_our_words(unknown.value, [])).endswith("; try --times")


def test_what_it_does_can_be_called_from_python(capsys: pytest.CaptureFixture[str]) -> None:
    greet.greet("x", ())
    assert capsys.readouterr().out == "hello x\n"


def test_words_behind_a_double_dash_are_no_values() -> None:
    assert spread([], ["a", "--", "--b", "c"]) == ["a", "--", "--b", "c"]
