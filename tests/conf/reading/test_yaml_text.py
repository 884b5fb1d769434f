"""Files of settings that would grow, or never end, are refused by name; at once."""

import os
import time

import pytest

from conf.compose import compose, dump, load
from conf.errors import ConfigError
from conf.reading.setting_files import read_settings
from conf.reading.yaml_text import MOST_BYTES

LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))
SECTIONS = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n} {{{', '.join(f'k{k}: *a{n - 1}' for k in range(9))}}}\n" for n in range(1, 30)
)
HOSTILE = {
    "lists": (LAUGHS, "an alias of a mapping or list"),
    "mappings": (SECTIONS, "an alias of a mapping or list"),
    "itself": ("a: &a [*a]\n", "an alias of a mapping or list"),
    "deep": ("a: " + "[" * 100_000, "nested more than 20 deep"),
    "large": ("a: b\n" * MOST_BYTES, "are the most"),
    "binary": ("a: \x00\x01", "special characters"),
}


@pytest.mark.parametrize(("text", "says"), HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("read", [load, read_settings], ids=["config.yaml", "--config"])
def test_hostile_files(read, text, says, tmp_path):
    (tmp_path / "mine.yaml").write_text(text)
    began = time.monotonic()
    with pytest.raises(ConfigError, match=says) as caught:
        read(tmp_path / "mine.yaml")
    assert time.monotonic() - began < 2
    assert caught.value.field == str(tmp_path / "mine.yaml")


@pytest.mark.parametrize("read", [load, read_settings], ids=["config.yaml", "--config"])
def test_a_pipe_is_not_waited_for(read, tmp_path):
    os.mkfifo(tmp_path / "mine.yaml")
    with pytest.raises(ConfigError, match="no regular file"):
        read(tmp_path / "mine.yaml")


def test_an_alias_of_a_text_is_that_text(tmp_path):
    (tmp_path / "mine.yaml").write_text("seed: &n 5\ndata.seed: *n\n")
    assert read_settings(tmp_path / "mine.yaml") == ["seed=5", "data.seed=5"]


def test_what_a_run_writes_is_read(tmp_path):
    cfg = compose(["data=text", "data.files=[/a,/b]"], files="unchecked")
    dump(cfg, tmp_path / "config.yaml")
    assert load(tmp_path / "config.yaml") == cfg
