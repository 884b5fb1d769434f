"""Paths and globs: what exists as it stands is no glob, and what cannot be read is refused before anything starts."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from conf.compose import compose
from conf.errors import ConfigError, ConfigErrors
from conf.reading.paths import format_of, matching, text_files


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with brackets in its name, and files whose names look like globs."""
    here = tmp_path / "[here]"
    for name in ("[v1]/a.jsonl", "[v1]/b.jsonl", "v/a.jsonl", "x[1].txt", "x1.txt", "star*.txt", "stars.txt", "t.csv"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text('{"text": "x"}\n')
    monkeypatch.chdir(here)
    return here


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("[v1]/a.jsonl", ["[v1]/a.jsonl"]),
        ("[v1]/*.jsonl", ["[v1]/a.jsonl", "[v1]/b.jsonl"]),
        ("[vw]/*.jsonl", ["v/a.jsonl"]),
        ("x[1].txt", ["x[1].txt"]),
        ("x[12].txt", ["x1.txt"]),
        ("star*.txt", ["star*.txt"]),
        ("sta*.txt", ["star*.txt", "stars.txt"]),
        ("**/a.jsonl", ["[v1]/a.jsonl", "v/a.jsonl"]),
        ("nothing*", []),
        ("", []),
    ],
)
def test_as_much_as_exists_is_taken_as_it_stands(tree: Path, pattern: str, expected: list[str]) -> None:
    assert matching(pattern) == expected
    assert matching(str(tree / pattern)) == [str(tree / name) for name in expected] or not pattern


def test_a_configuration_keeps_such_paths(tree: Path) -> None:
    cfg = compose(["data=text", "data.files=[v1]/*.jsonl"])
    assert [path.name for path in text_files("data.files", cfg.data.files)] == ["a.jsonl", "b.jsonl"]


@pytest.mark.parametrize(
    ("overrides", "field", "says"),
    [
        (["data=text", "data.files=v"], "data.files", "it is a folder"),
        (["data=text", "data.files=v*"], "data.files", "it is a folder"),
        (["data=text", "data.files=no*.txt"], "data.files", "nothing matches"),
        (["data=text", "data.files=no/x.txt"], "data.files", "folder 'no' does not exist"),
        (["data=text", "data.files=*.csv"], "data.files", "needs files named .txt"),
        (["data=stdlib", "data.validation_files=t.csv"], "data.validation_files", "needs files named"),
        (["data=c4", "data.hub_files=t.csv"], "data.hub_files", "needs files named"),
        (["data=shards", "data.files=v"], "data.files", "index.json is not in it"),
        (["data=stdlib", "data.tokenizer=v"], "data.tokenizer", "it is a folder"),
        (["data=text", "data.files=v/a.jsonl", "data.validation_files=*/a.jsonl"], "data.validation_files", "overlap"),
    ],
)
@pytest.mark.usefixtures("tree")
def test_what_training_would_refuse_is_refused_with_the_configuration(
    overrides: list[str], field: str, says: str
) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        compose(overrides)
    assert caught.value.field == field


@pytest.mark.parametrize("make", [os.symlink, os.link])
@pytest.mark.usefixtures("tree")
def test_a_file_is_held_out_under_none_of_its_names(make: Callable[[str, str], None]) -> None:
    make("v/a.jsonl", "other.jsonl")
    with pytest.raises(ConfigError, match="overlap") as caught:
        compose(["data=text", "data.files=v/a.jsonl", "data.validation_files=other.jsonl"])
    assert caught.value.got == "other.jsonl"


@pytest.mark.parametrize("again", ["v", "./v", "v/../v", "link"])
@pytest.mark.usefixtures("tree")
def test_a_directory_of_shards_is_named_once(again: str) -> None:
    Path("v/index.json").write_text("{}")
    os.symlink("v", "link")
    assert compose(["data=shards", "data.files=v"]).data.files
    with pytest.raises(ConfigError, match=r"needs each directory once: it is '.*v' as well") as caught:
        compose(["data=shards", f"data.files=[v,{again}]"])
    assert caught.value.field == "data.files"


@pytest.mark.usefixtures("tree")
def test_several_missing_files_are_told_together() -> None:
    with pytest.raises(ConfigErrors) as caught:
        compose(["data=text", "data.files=no.txt", "data.tokenizer=no.model"])
    assert [error.field for error in caught.value.errors] == ["data.files", "data.tokenizer"]


def test_formats_by_name() -> None:
    names = ("a.TXT", "a.json.gz", "a.b.md", "a.parquet", "a.parquet.gz", "a.gz", "a", "a.txt.GZ")
    assert [format_of(name) for name in names] == ["text", "json", "text", "parquet", None, None, None, "text"]
