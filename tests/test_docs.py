"""What the pages say that a machine can check: links lead somewhere, named files exist, prose fits a screen."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.test_imports import MAY_IMPORT, ROOT

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks" / "README.md"])
GENERATED = ("headline.md", "precision.md", "fields.md")  # partly written by commands, line by line
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
NAMED = re.compile(rf"`((?:{'|'.join([*MAY_IMPORT, 'tests', 'docs', 'benchmarks'])})/[\w./-]+?\.(?:py|md|yaml|sh))`")


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Numbered lines that are neither code nor a table."""
    code = False
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("```"):
            code = not code
        elif not code and not line.startswith(("|", "    ")):
            yield number, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page(page):
    text = page.read_text(encoding="utf-8")
    links = [link for link in LINK.findall(text) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
    assert [name for name in NAMED.findall(text) if "NAME" not in name and not (ROOT / name).exists()] == []
    if page.name not in GENERATED:
        assert [number for number, line in prose(text) if len(line) > 120] == []


def test_the_rules_find_what_they_look_for():
    text = "see [it](docs/nowhere.md#part), `model/nothing.py` and `conf/x.yaml`\n```\ncode\n```\n| table |\nline"
    assert LINK.findall(text) == ["docs/nowhere.md"]
    assert NAMED.findall(text) == ["model/nothing.py", "conf/x.yaml"]
    assert [line for _, line in prose(text)][1:] == ["line"]
