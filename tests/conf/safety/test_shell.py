"""Words come back from a shell as they went in."""

import subprocess
from pathlib import Path

import pytest

from conf.safety import shell
from tests.launch.shells import sbatch_options

AWKWARD = [
    "",
    "a b",
    "it's",
    '"',
    "$(id)",
    "`id`",
    "\\",
    "a\nb",
    "!x",
    "~",
    "*",
    "-n",
    "caf\u00e9",
    "a'\"'b",
    "#x",
    "\\'",
]


def test_words_of_a_line_are_those_that_went_in():
    line = shell.line(["printf", "%s\\0", *AWKWARD])
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert done.stdout.split("\0")[:-1] == AWKWARD


def test_a_path_is_no_option_and_a_text_stays_as_it_is():
    assert shell.word(Path("-rf")) == "./-rf"
    assert shell.word("-rf") == "-rf"
    assert shell.word(Path("a b")) == "'a b'"


@pytest.mark.parametrize("text", [word for word in AWKWARD if "\n" not in word])
def test_directives_are_read_as_they_were_meant(text):
    assert sbatch_options(f"#SBATCH --a={shell.directive(text)} --b=c\n") == {"a": text, "b": "c"}


@pytest.mark.parametrize("text", ["a\nb", "\r", "\0", "\x1b[31m", "\x7f", "\x9b", "\u2029", "a\udc80"])
def test_what_no_line_can_hold_is_named(text):
    error = shell.control_character("data.text_field", text)
    assert error is not None
    assert str(error).startswith(f"data.text_field: got {text!r}; needs text without control characters")
    assert str(error).isprintable()


def test_other_texts_are_taken():
    assert shell.control_character("x", "a b \u00a0 \u4e16 \U0001f600 \u200d $`'\"\\") is None
