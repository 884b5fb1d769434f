"""Segmentation: sentencepiece's, and a rule where two are equally probable."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from data.batch import UNK_ID
from data.text.segment import Segmenter
from data.text.tokenizer import Tokenizer
from data.text.train_tokenizer import text_lines, train_tokenizer
from tests.data.helpers import sentences
from tests.data.text.models import PROTO, t5_like

LINES = [*text_lines(sentences(40, seed=n) for n in range(10)), *("    " * n + "x" + "=" * n for n in range(30))]


@pytest.fixture(scope="module", params=["ours", "bytes", "t5"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    make = {
        "ours": lambda: train_tokenizer(LINES, pieces=120),
        "bytes": lambda: train_tokenizer(LINES, pieces=400, byte_fallback=True),
        "t5": t5_like,
    }
    return Tokenizer(make[request.param](), sentinels=10, origin="x")


def texts() -> Iterator[str]:
    draw = random.Random(3)
    for _ in range(300):
        yield "".join(draw.choices(["the ", "cat", " dog", "ab", "q", "\n", "\u20ac\u20ac", "Z", "  "], k=12))


def score(tokenizer: Tokenizer, ids: list[int]) -> float:
    return sum(tokenizer.spiece.proto.pieces[token].score for token in ids)


def test_is_sentencepieces_but_for_ties(tokenizer: Tokenizer) -> None:
    for text in texts():
        ours, theirs = tokenizer.encode(text).tolist(), tokenizer.encode_documents([text])[0]
        assert ours == theirs or score(tokenizer, ours) == pytest.approx(score(tokenizer, theirs), rel=1e-6), text
        assert tokenizer.decode(ours) == tokenizer.decode(theirs)


def test_sentencepiece_and_theirs_part_at_ties() -> None:
    """Why there is a segmentation of our own: sentencepiece's choice depends on all that stands before."""
    tokenizer = Tokenizer(train_tokenizer(LINES, pieces=120), sentinels=10, origin="x")
    runs = [f"{before}\n{' ' * length}\n" for before in list(texts())[:40] for length in (11, 13, 19, 23)]
    unlike = [run for run in runs if tokenizer.encode(run).tolist() != tokenizer.encode_documents([run])[0]]
    assert unlike, "they agree everywhere: sentencepiece's own ids would do"
    for run in unlike:
        ours, theirs = tokenizer.encode(run).tolist(), tokenizer.encode_documents([run])[0]
        assert sorted(ours) == sorted(theirs), run


def made(pieces: list[tuple[str, float, int]], **trainer: bool) -> Segmenter:
    proto = PROTO.ModelProto()
    for piece, value, kind in [("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2), *pieces]:
        proto.pieces.add(piece=piece, score=value, type=kind)
    for name, value in trainer.items():
        setattr(proto.trainer_spec, name, value)
    return Segmenter(proto)


def test_by_hand() -> None:
    segmenter = made(
        [("a", -1.0, 1), ("aa", -1.5, 1), ("b", -3.0, 1), ("ab", -2.0, 1), ("<s>", -9.0, 4), ("c", 0.0, 5)]
    )
    assert segmenter.ids("aaa") == [3, 4]  # a + aa and aa + a are equal: the longer one is last
    assert segmenter.ids("aab") == [3, 6]
    assert segmenter.ids("b??b") == [5, UNK_ID, 5]
    assert segmenter.ids("c") == [UNK_ID]  # unused pieces are not made of text
    assert segmenter.ids("a<s>") == [3, 7]
    assert segmenter.ids("") == []


def test_bytes_take_the_place_of_the_unknown() -> None:
    bytes_ = [(f"<0x{n:02X}>", 0.0, 6) for n in range(256)]
    segmenter = made([*bytes_, ("a", -1.0, 1)], byte_fallback=True)
    assert segmenter.ids("a\u20aca") == [259, 3 + 0xE2, 3 + 0x82, 3 + 0xAC, 259]
    assert segmenter.ids("<0x41>") == [3 + ord(letter) for letter in "<0x41>"]
