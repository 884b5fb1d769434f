"""Names of other projects: every row points to a field or group that there is, and none hides one of ours."""

from __future__ import annotations

import re

import pytest

from conf.reading.elsewhere import ABSENT, CALLED, known_elsewhere
from conf.reading.fields import leaf_types
from conf.reading.presets import groups, presets

FIELDS = set(leaf_types())
_FIRST = re.compile(r"[a-z_]+(\.[a-z_0-9]+)?")  # of a hint: what to type


@pytest.mark.parametrize("name", CALLED)
def test_what_is_to_be_typed_exists(name):
    typed = _FIRST.match(CALLED[name]).group()
    assert typed in FIELDS or typed in groups()
    for mentioned in re.findall(r"[a-z]+\.[a-z_0-9]+", CALLED[name]):
        assert mentioned in FIELDS


@pytest.mark.parametrize("name", ABSENT)
def test_what_is_not_there_names_only_what_is(name):
    for mentioned in re.findall(r"(?:train|data|optim|parallel|model|moe)\.[a-z_0-9]+", ABSENT[name]):
        assert mentioned in FIELDS
    assert known_elsewhere(f"train.{name}") == (f"to be left out: {ABSENT[name]}", "")


def test_names_of_ours_are_in_no_row():
    ours = FIELDS | {field.rpartition(".")[2] for field in FIELDS} | set(groups())
    assert not ours & {*CALLED, *ABSENT}
    assert not CALLED.keys() & ABSENT.keys()
    assert all(presets(group) for group in groups())
    assert known_elsewhere("train.steps") is None
