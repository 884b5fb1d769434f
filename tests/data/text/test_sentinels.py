"""Sentinels as facts of a tokenizer: those inside a model, their numbers, and the blanks beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from conf.errors import ConfigError, DataError
from data.text.spiece import BLANK, CONTROL, NORMAL, USER_DEFINED
from data.text.tokenizer import Tokenizer
from data.text.train_tokenizer import text_lines, train_tokenizer
from tests.data.helpers import sentences
from tests.data.text.models import t5_like, with_pieces

T5 = t5_like()
OURS = train_tokenizer(list(text_lines(sentences(40, seed=n) for n in range(10))), pieces=120)


def tokenizer(model: bytes, sentinels: int = 20) -> Tokenizer:
    return Tokenizer(model, sentinels=sentinels, origin="x.model")


def counting_down(count: int, kind: int, blank: str = BLANK) -> list[tuple[str, int]]:
    return [(f"{blank}<extra_id_{k}>", kind) for k in range(count - 1, -1, -1)]


@pytest.mark.parametrize(
    "text",
    [
        "<extra_id_0> cute dog<extra_id_1> the",
        "un<extra_id_0>able",
        "<extra_id_3> cat",
        "the cat<extra_id_0> is<extra_id_2>ab<extra_id_1>le to",
    ],
)
def test_blanks_beside_sentinels_come_back_where_t5_drops_others(text: str) -> None:
    t5 = tokenizer(T5)
    assert t5.decode(t5.encode_with_sentinels(text)) == text


def test_a_blank_before_a_sentinel_belongs_to_the_word_that_is_masked() -> None:
    """As in T5's training and in transformers: the tokens of "The cat walks" with that of " cat" replaced."""
    t5 = tokenizer(T5)
    whole = t5.encode("The dog walks in the park").tolist()
    start, middle = len(t5.encode("The")), len(t5.encode("The dog"))
    masked = [*whole[:start], t5.sentinel_id(0), *whole[middle:]]
    assert t5.encode_with_sentinels("The <extra_id_0> walks in the park").tolist() == masked
    assert t5.decode(masked) == "The<extra_id_0> walks in the park"
    assert t5.decode(whole[start:middle], inside=True) == " dog"


def test_a_word_that_goes_on_behind_a_sentinel_gets_no_blank() -> None:
    t5 = tokenizer(T5)
    whole = t5.encode("unable").tolist()
    end = t5.encode_with_sentinels("<extra_id_0>able").tolist()[1:]
    assert not t5.spiece.proto.pieces[end[0]].piece.startswith(BLANK)
    assert t5.decode(end, inside=True) == "able"
    assert t5.decode(whole) == "unable"
    assert t5.encode_with_sentinels("<extra_id_0> able").tolist()[1:] == t5.encode("able").tolist()


@pytest.mark.parametrize(
    "changes",
    [
        {"remove_extra_whitespaces": False},  # a blank is put before the text, none is dropped
        {"add_dummy_prefix": False},  # blanks at the ends are dropped, none is put
        {"add_dummy_prefix": False, "remove_extra_whitespaces": False},
    ],
)
def test_other_rules_for_blanks(changes: dict[str, bool]) -> None:
    other = tokenizer(t5_like(**changes))
    for text in ("<extra_id_0> cute dog<extra_id_1> the", "un<extra_id_0>able", "the<extra_id_0> cat"):
        assert other.decode(other.encode_with_sentinels(text)) == text
    if changes.get("remove_extra_whitespaces") is False:
        text = "the <extra_id_0>  cat <extra_id_1>"
        assert other.decode(other.encode_with_sentinels(text)) == text


@pytest.mark.parametrize("text", ["a <extra_id_0>\n\n  b<extra_id_1><extra_id_2>  ", " <extra_id_7> ", "<extra_id_0>"])
def test_text_of_a_tokenizer_trained_here_comes_back_whole(text: str) -> None:
    ours = tokenizer(OURS)
    assert ours.decode(ours.encode_with_sentinels(text)) == text


def test_numbers_are_kept_and_what_is_no_number_stays_text() -> None:
    ours = tokenizer(OURS)
    ids = ours.encode_with_sentinels("cat <extra_id_3> the <extra_id_0>").tolist()
    assert [ours.sentinel_number(token) for token in ids if token >= 120] == [3, 0]
    for text in ("<extra_id_03>", "<extra_id_\u00b2>", "<extra_id_>", "<extra_id_1", "<extra_id_" + "9" * 30 + ">"):
        assert all(ours.sentinel_number(token) is None for token in ours.encode_with_sentinels(text).tolist())
    with pytest.raises(DataError, match="there are 20 sentinels"):
        ours.encode_with_sentinels("<extra_id_20>")


@pytest.mark.parametrize("sentinels", [0, 30])
@pytest.mark.parametrize(
    "pieces",
    [
        counting_down(30, USER_DEFINED),  # mT5's
        counting_down(30, USER_DEFINED, blank=""),
        counting_down(30, NORMAL),
        counting_down(30, USER_DEFINED)[::-1],
        [*counting_down(30, CONTROL)[7:], ("between", USER_DEFINED), *counting_down(30, CONTROL)[:7]],
    ],
)
def test_sentinels_among_the_pieces_are_used(pieces: list[tuple[str, int]], sentinels: int) -> None:
    t5 = tokenizer(with_pieces(T5, pieces), sentinels)
    names = [piece.removeprefix(BLANK) for piece, _ in pieces]
    assert (t5.size, t5.sentinels) == (120 + len(pieces), 30)
    assert [t5.sentinel_id(k) for k in range(30)] == [120 + names.index(f"<extra_id_{k}>") for k in range(30)]
    text = "<extra_id_0> cute dog<extra_id_29> the"
    ids = t5.encode_with_sentinels(text).tolist()
    assert [ids[0], ids[-1 - len(t5.encode("the"))]] == [t5.sentinel_id(0), t5.sentinel_id(29)]
    assert t5.decode(ids) == text
    assert all(t5.sentinel_number(token) is None for token in t5.encode("a <extra_id_0> b").tolist()), "text is text"
    assert all(t5.sentinel_number(token) is None for token in t5.encode_documents(["a <extra_id_0> b"])[0])
    assert t5.encode("the cat").tolist() == tokenizer(T5).encode("the cat").tolist()


def test_malformed_sentinels_are_refused() -> None:
    gap = [piece for piece in counting_down(30, USER_DEFINED) if "_7>" not in piece[0]]
    with pytest.raises(DataError, match=r"x\.model: 29 of its pieces are sentinels, but <extra_id_7> is missing"):
        tokenizer(with_pieces(T5, gap))
    twice = [*counting_down(30, USER_DEFINED), ("<extra_id_3>", USER_DEFINED)]
    with pytest.raises(DataError, match="two have the same number"):
        tokenizer(with_pieces(T5, twice))
    with pytest.raises(ConfigError, match=r"data\.sentinels: got 100; needs 30, .* try data\.sentinels=30"):
        tokenizer(with_pieces(T5, counting_down(30, USER_DEFINED)), 100)


def test_a_piece_that_was_learned_of_text_is_no_sentinel() -> None:
    learned = tokenizer(with_pieces(T5, [("<extra_id_0>", NORMAL)]))
    assert (learned.size, learned.sentinel_id(0)) == (121 + 20, 140)


def test_no_sentinels_at_all() -> None:
    none = tokenizer(OURS, 0)
    assert (none.size, none.sentinels) == (120, 0)
    with pytest.raises(DataError, match="there are 0 sentinels"):
        none.sentinel_id(0)


def test_a_file_is_read_with_its_own(tmp_path: Path) -> None:
    path = tmp_path / "spiece.model"
    path.write_bytes(with_pieces(T5, counting_down(5, USER_DEFINED)))
    assert Tokenizer.from_file(path, sentinels=0).sentinel_id(0) == 124
