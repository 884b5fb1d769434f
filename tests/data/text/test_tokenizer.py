"""Tokenizer: layout of ids, sentinels, lossless whitespace, deterministic training, clear errors."""

from __future__ import annotations

import io
from collections.abc import Iterator

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
    with pytest.raises(DataError, match="there are 10 sentinels"):
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


@pytest.mark.parametrize("byte_fallback", [False, True])
@pytest.mark.parametrize("pieces", [6, 20, 5_000])
def test_a_number_of_pieces_that_cannot_be_comes_with_one_that_can(pieces: int, byte_fallback: bool) -> None:
    lines = [*LINES, "".join(chr(0x4E00 + n) for n in range(150))]

    def train(number: int) -> bytes:
        return train_tokenizer(lines, pieces=number, character_coverage=1.0, byte_fallback=byte_fallback)

    with pytest.raises(
        DataError, match=rf"data.tokenizer_vocab: got {pieces}; .* try data.tokenizer_vocab=\d+"
    ) as error:
        train(pieces)
    number = int(str(error.value).partition("try data.tokenizer_vocab=")[2].split()[0])
    assert Tokenizer(train(number), sentinels=0, origin="x").pieces == number


def test_a_fault_of_the_text_is_told_in_its_own_words() -> None:
    def lines() -> Iterator[str]:
        yield "some text"
        raise DataError("a.jsonl: row 2: bad")

    with pytest.raises(DataError, match=r"^a\.jsonl: row 2: bad$"):
        train_tokenizer(lines(), pieces=20)


def test_text_of_blank_lines_alone_is_named() -> None:
    with pytest.raises(DataError, match="no line but blank ones"):
        train_tokenizer([], pieces=50)


EMOJI = "a smile \U0001f600 and 10 \u20ac \U0001f600 \U0001f600\u20ac"


def test_unknown_characters_are_counted(tokenizer: Tokenizer) -> None:
    unknown = tokenizer.unknown_characters(EMOJI)
    assert {c: unknown[c] for c in "\U0001f600\u20ac"} == {"\U0001f600": 3, "\u20ac": 2}
    assert not tokenizer.unknown_characters("the cat")


def test_byte_fallback_knows_every_character() -> None:
    spelled = Tokenizer(train_tokenizer(LINES, pieces=380, byte_fallback=True), sentinels=10, origin="x")
    assert not spelled.unknown_characters(EMOJI)
    assert spelled.decode(spelled.encode(EMOJI)) == EMOJI
    assert spelled.decode(spelled.encode("<0x41>\r\x0b")) == "<0x41>\r\x0b"


def test_coverage_decides_which_characters_are_pieces() -> None:
    lines = [*LINES, EMOJI]
    for coverage, known in ((0.9995, False), (1.0, True)):
        model = train_tokenizer(lines, pieces=130, character_coverage=coverage)
        assert (not Tokenizer(model, sentinels=0, origin="x").unknown_characters(EMOJI)) == known


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
