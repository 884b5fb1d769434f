"""Where texts come from and how decoding options are read; wrong ones are refused before a model is loaded."""

import io
import json

import pytest

from conf.compose import compose
from conf.errors import ConfigError
from launch import cli
from trainer.commands import trained
from trainer.commands.arguments import Decoding
from trainer.commands.fill import command
from trainer.commands.filling import Filled
from trainer.commands.texts import read_texts, visible


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
    for encoding in ("utf-16-le", "utf-16-be", "utf-32-le"):
        latin.write_bytes("a <mask>".encode(encoding))
        with pytest.raises(ConfigError, match=r"--file: .*byte 0x00 at character \d is no text"):
            read_texts([], latin)
    latin.write_text("a <mask>\n" + "b" * 1_000_001)
    with pytest.raises(ConfigError, match=r"--file: got 'a line of 1,000,001 characters, the 2\. with text'"):
        read_texts([], latin)
    with pytest.raises(ConfigError, match="UTF-8"):
        read_texts(["caf\udce9 <mask>"], None)


def test_lines_of_a_file_end_as_those_of_training_text(tmp_path):
    """A line feed, CR LF or CR ends a line, and nothing else does; a byte order mark is no text."""
    file = tmp_path / "lines.txt"
    file.write_bytes("\ufeffa <mask>\r\nb\u2028<mask>\x0cc\rd <mask>".encode())
    assert read_texts([], file) == ["a <mask>", "b\u2028<mask>\x0cc", "d <mask>"]


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


class Stub:
    """A run that fills every mask with a line break, and generates ids 5 and 6."""

    config = compose([])

    class tokenizer:  # noqa: N801
        decode = staticmethod(lambda ids: "x\n\ty\\n")

    def fill(self, texts, **decoding):
        Stub.decoding = decoding
        return [Filled(spans=("\n ", "b\tc"), text=text.replace("<mask>", "\n ")) for text in texts]

    def generation_note(self, task):
        return None

    def generate_ids(self, texts, *, task, **decoding):
        Stub.decoding = decoding
        return [[5, 6] for _ in texts]


@pytest.fixture
def stub(monkeypatch):
    monkeypatch.setattr(trained, "load", lambda run: Stub())
    monkeypatch.setattr("trainer.commands.generate.require_run", lambda run: None)


def test_a_result_is_one_line_in_which_line_breaks_are_seen(stub, capsys):
    assert visible("a\n\tb\\n \u20ac\x1b[0m\u00a0") == "a\\n\\tb\\\\n \u20ac\\x1b[0m\\xa0"
    assert cli.run(["fill", "run", "if x:<mask>y", "a <mask>"]) == 0
    assert capsys.readouterr().out == "if x:\\n y\na \\n \n"
    assert cli.run(["fill", "run", "a <mask>", "--spans-only"]) == 0
    assert capsys.readouterr().out == "\\n \tb\\tc\n"
    assert cli.run(["generate", "run", "a", "b"]) == 0
    assert capsys.readouterr().out == "x\\n\\ty\\\\n\n" * 2


def test_json_has_one_object_for_each_text(stub, capsys):
    assert cli.run(["fill", "run", "--json", "a\n<mask>", "\u00e9 <mask>"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == {"input": "a\n<mask>", "text": "a\n\n ", "spans": ["\n ", "b\tc"]}
    assert second["input"] == "\u00e9 <mask>"
    assert cli.run(["generate", "run", "a", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"input": "a", "text": "x\n\ty\\n", "ids": [5, 6]}


@pytest.mark.parametrize("name", ["fill", "generate"])
@pytest.mark.parametrize(
    "words",
    [
        ["--beams", "4", "run", "a <mask>", "b <mask>"],
        ["run", "--beams", "4", "a <mask>", "b <mask>"],
        ["run", "a <mask>", "--beams=4", "b <mask>"],
        ["run", "a <mask>", "b <mask>", "--beams", "4"],
        ["--beams", "4", "--", "run", "a <mask>", "b <mask>"],
    ],
)
def test_options_stand_anywhere(name, words, stub, capsys):
    assert cli.run([name, *words]) == 0
    assert Stub.decoding["beams"] == 4
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_text_may_begin_with_a_dash(stub, capsys):
    assert cli.run(["fill", "run", "--beams", "2", "--", "-x <mask>", "--y <mask>"]) == 0
    assert capsys.readouterr().out == "-x \\n \n--y \\n \n"
