"""Cutting long texts: nothing is lost, and cuts fall at natural places."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from data.sources.splitting import HARD_CHARS, MIN_CHARS, SOFT_CHARS, split_text


@given(text=st.text(alphabet="ab \n\r\t", max_size=300).map(lambda part: part * 200))
def test_documents_join_to_the_text(text: str) -> None:
    documents = list(split_text(text, code=True))
    assert "".join(documents) == text
    assert all(0 < len(document) <= HARD_CHARS for document in documents)


def test_code_is_cut_before_definitions() -> None:
    function = "def f():\n" + "    x = 1\n" * 60 + "\n"
    documents = list(split_text(function * 30, code=True))
    assert len(documents) > 5
    assert all(document.startswith("def f") for document in documents)
    assert all(MIN_CHARS <= len(document) <= SOFT_CHARS for document in documents[:-1])


def test_prose_is_cut_at_blank_lines() -> None:
    paragraph = "A line of prose.\n" * 20 + "\n"
    documents = list(split_text(paragraph * 60))
    assert len(documents) > 2
    assert all(document.endswith(".\n\n") for document in documents)
