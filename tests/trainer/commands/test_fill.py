"""Where texts come from and how decoding options are read; wrong ones are refused before a model is loaded."""

import io

import pytest

from conf.errors import ConfigError
from launch import cli
from trainer.commands.arguments import Decoding
from trainer.commands.fill import command, read_texts


def test_command_line_then_file_then_standard_input(tmp_path, monkeypatch):
    file = tmp_path / "lines.txt"
    file.write_text("one <mask>\n\n  \ntwo <mask>\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("three <mask>\n"))
    assert read_texts(["zero"], file) == ["zero"]
    assert read_texts([], file) == ["one <mask>", "two <mask>"]
    assert read_texts([], None) == ["three <mask>"]


def test_nothing_to_read_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    with pytest.raises(ConfigError, match="at least one line"):
        read_texts([], None)
    with pytest.raises(ConfigError, match="--file"):
        read_texts([], tmp_path / "none.txt")
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"caf\xe9 <mask>")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_texts([], latin)


def test_a_text_without_a_mask_comes_before_a_missing_run():
    with pytest.raises(ConfigError, match="span to fill"):
        cli.run(["fill", "no/such/run", "nothing missing here"])
    with pytest.raises(ConfigError, match="run folder"):
        cli.run(["fill", "no/such/run", "a <mask>"])


def options(*words):
    typed = command.make_context("fill", ["run", *words]).params
    names = Decoding.__dataclass_fields__
    return Decoding(**{name: typed[name] for name in names}).options(max_length=64)


def test_decoding_options():
    assert (options().mode, options().max_length) == ("greedy", 64)
    assert (options("--beams", "4").mode, options("--beams", "4").beams) == ("beam", 4)
    assert (options("--sample", "--top-k", "5").mode, options("--sample").top_k) == ("sample", None)
    for words in (["--sample", "--beams", "2"], ["--beams", "0"], ["--max-length", "0"]):
        with pytest.raises(ConfigError):
            options(*words)
