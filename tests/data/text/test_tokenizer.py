"""Tokenizer: layout of ids, sentinels, lossless whitespace, deterministic training, clear errors."""

from __future__ import annotations

import io

import pytest
import sentencepiece

from conf.errors import DataError
from data.text.tokenizer import Tokenizer
from data.text.train_tokenizer import sample_lines, text_lines, train_tokenizer
from tests.data.helpers import sentences

LINES = list(text_lines(sentences(40, seed=n) for n in range(10)))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(train_tokenizer(LINES, pieces=120), sentinels=10, origin="test")


def test_training_twice_gives_equal_bytes(tokenizer: Tokenizer) -> None:
    assert train_tokenizer(LINES, pieces=120) == tokenizer.model


def test_layout_is_t5s(tokenizer: Tokenizer) -> None:
    assert (tokenizer.pieces, tokenizer.size) == (120, 130)
    assert [tokenizer.sentinel_id(k) for k in (0, 1, 9)] == [129, 128, 120]
    with pytest.raises(DataError, match=r"data\.sentinels is 10"):
        tokenizer.sentinel_id(10)


@pytest.mark.parametrize("text", ["def value self\n    return  self\n\n\tclass\n", "  the cat", "\n\n", "", " "])
def test_whitespace_survives(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_sentinels_are_rendered_and_read(tokenizer: Tokenizer) -> None:
    text = "the <extra_id_0> sat<extra_id_1> on <extra_id_x"
    ids = tokenizer.encode_with_sentinels(text)
    assert [token for token in ids if token >= 120] == [129, 128]
    without_unknown = "the <extra_id_0> sat<extra_id_1> on "
    assert tokenizer.decode(tokenizer.encode_with_sentinels(without_unknown)) == without_unknown
    assert tokenizer.decode([0, *tokenizer.encode("cat"), 1, 0, 0]) == "cat"


def test_ids_outside_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="outside the vocabulary of 130"):
        tokenizer.decode([130])


def test_sample_is_exact_deterministic_and_in_order() -> None:
    lines = [str(number) for number in range(1_000)]
    chosen = list(sample_lines(iter(lines), total=1_000, wanted=100))
    assert len(chosen) == 100
    assert chosen == sorted(chosen, key=int)
    assert chosen == list(sample_lines(iter(lines), total=1_000, wanted=100))
    assert list(sample_lines(iter(lines), total=1_000, wanted=1_000)) == lines


def test_too_many_pieces_says_how_many_would_do() -> None:
    with pytest.raises(DataError, match=r"data.tokenizer_vocab: got 5000; .* at most \d+ pieces"):
        train_tokenizer(LINES, pieces=5_000)


def test_foreign_files_are_refused(tmp_path) -> None:
    path = tmp_path / "x.model"
    path.write_bytes(b"not a model")
    with pytest.raises(DataError, match=r"x\.model: not a sentencepiece model"):
        Tokenizer.from_file(path, sentinels=0)
    with pytest.raises(DataError, match=r"set data\.tokenizer"):
        Tokenizer.from_file(tmp_path / "missing.model", sentinels=0)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=model, vocab_size=60, minloglevel=2
    )
    path.write_bytes(model.getvalue())
    with pytest.raises(DataError, match=r"pad, eos, unk have ids \(-1, 2, 0\); needs \(0, 1, 2\)"):
        Tokenizer.from_file(path, sentinels=0)
