"""Meanings come from the comments of the schema, and every field has one."""

from __future__ import annotations

import ast

import pytest

from conf.reading import meanings as module
from conf.reading.fields import leaf_types
from conf.reading.meanings import choices, meanings, sections
from conf.sources import SOURCES


def test_every_field_and_section_says_what_it_is() -> None:
    assert set(meanings()) == {*leaf_types(), *sections()}
    assert [path for path, text in meanings().items() if not text.strip()] == []
    assert not any("None" in text for text in meanings().values())


def test_the_comment_is_the_one_in_the_schema() -> None:
    assert meanings()["train.eval_every"] == "steps; null: a tenth of the run; 0: only first and last"
    assert meanings()["launch"] == "How processes start."


def test_comments_above_and_behind_are_one_and_those_of_others_are_not_taken() -> None:
    source = (
        "class A:\n    # a\n\n    # one\n    # two\n    x: int  # three\n    y: int\n    z: str = '# no'\n    # last\n"
    )
    fields = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.AnnAssign)]
    comments = module._comments(source)
    assert [module._comment_of(field, comments) for field in fields] == ["one two three", "", ""]


@pytest.mark.parametrize(
    ("path", "values"),
    [
        ("parallel.zero", ("0", "1", "2")),
        ("model.tie_embeddings", ("true", "false")),
        ("model.logit_scale", ("width", "one", "null")),
        ("data.source", tuple(SOURCES)),
        ("train.steps", ()),
    ],
)
def test_values_that_can_be_listed(path: str, values: tuple[str, ...]) -> None:
    assert choices(path) == values
