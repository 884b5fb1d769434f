"""From text with masks to encoder ids and from generated ids back to spans."""

import re

import numpy as np
import pytest

from conf.compose import compose
from conf.errors import ConfigError
from data.tasks.span_corruption import parse_spans
from data.text.tokenizer import Tokenizer
from data.text.train_tokenizer import text_lines, train_tokenizer
from tests.data.helpers import sentences
from tests.data.text.models import t5_like
from trainer.commands.filling import encode_masked, filled, find_masks, split_masks, untrained_masks


class Letters:
    """A tokenizer of one id per character: chr(97) is 10; ids 90..99 are sentinels, <extra_id_0> the last."""

    sentinels = 10

    def encode_with_sentinels(self, text):
        ids = []
        for part in re.split(r"(<extra_id_\d>)", text):
            ids += [99 - int(part[-2])] if part.startswith("<") else [ord(letter) - 87 for letter in part]
        return np.array(ids)

    def sentinel_number(self, token):
        return 99 - token if 90 <= token <= 99 else None


def test_masks_split_text():
    assert split_masks("a<mask>b<extra_id_3>c") == (["a", "b", "c"], [0, 3])
    assert split_masks("<mask>") == (["", ""], [0])
    assert find_masks("x < mask >") == (["x < mask >"], [])


def test_typed_numbers_are_kept_and_masks_take_those_that_are_free():
    assert find_masks("<extra_id_1> a <extra_id_0>").numbers == [1, 0]
    assert find_masks("<mask><extra_id_0><mask><extra_id_2><mask>").numbers == [1, 0, 3, 2, 4]
    assert find_masks("boat <extra_id_3> the").text == "boat <extra_id_3> the"
    assert find_masks("<mask> and <mask>").text == "<extra_id_0> and <extra_id_1>"
    assert encode_masked(Letters(), "a<extra_id_3>bc<mask>") == [10, 96, 11, 12, 99, 1]
    assert encode_masked(Letters(), "abc") == [10, 11, 12, 1]


def test_text_without_a_mask_is_refused_with_an_example():
    with pytest.raises(ConfigError, match="<mask>"):
        split_masks("nothing to fill")


def test_encoding_numbers_sentinels_in_order_and_ends():
    assert encode_masked(Letters(), "a<mask>bc<mask>") == [10, 99, 11, 12, 98, 1]


def test_too_many_masks():
    with pytest.raises(ConfigError, match="at most 10"):
        encode_masked(Letters(), "<mask>" * 11)
    with pytest.raises(ConfigError, match=r"up to <extra_id_10>.*at most 10"):
        encode_masked(Letters(), "<extra_id_10>")


def test_more_masks_than_trained_spans_are_pointed_out():
    one_span, three_spans = compose([]).data, compose(["data.encoder_length=64"]).data
    assert untrained_masks(["a <mask>", "<mask> b"], one_span) is None
    assert "<extra_id_2>" in (untrained_masks(["a <mask>", "<mask> b <mask> c <mask>"], one_span) or "")
    assert "<extra_id_7>" in (untrained_masks(["a <extra_id_7>"], one_span) or "")
    assert untrained_masks(["<mask> b <mask> c <mask>"], three_spans) is None


@pytest.mark.parametrize(
    ("generated", "expected"),
    [
        ([99, 10, 11, 98, 12, 97, 1], [[10, 11], [12]]),  # as trained: a last sentinel, then EOS
        ([99, 10, 1, 98, 12], [[10], []]),  # EOS ends everything
        ([10, 11, 98, 12, 1], [[], [12]]),  # text before the first sentinel belongs to no span
        ([99, 10, 99, 11, 1], [[10], []]),  # a repeated sentinel does not append
        ([99, 10, 95, 11, 98, 12, 1], [[10], [12]]),  # a sentinel nobody asked for ends the span
        ([], [[], []]),
    ],
)
def test_spans_are_what_follows_their_sentinel(generated, expected):
    assert parse_spans(Letters(), generated, 2) == expected


def generated(tokenizer, *spans):
    """What a model gives for spans 0, 1, ..: the tokens of a text that goes on behind each sentinel."""
    return tokenizer.encode_with_sentinels("".join(f"<extra_id_{k}>{span}" for k, span in enumerate(spans))).tolist()


@pytest.mark.parametrize(
    ("text", "spans", "expected", "shown"),
    [
        ("The <mask> walks", [" cat"], "The cat walks", ("cat",)),
        ("The<mask> walks", [" cat"], "The cat walks", (" cat",)),
        ("un<mask>able", ["stopp"], "unstoppable", ("stopp",)),
        ("<mask> walks in<mask>.", [" The cat", " the park"], "The cat walks in the park.", ("The cat", " the park")),
        ("the <extra_id_1> in the\n<extra_id_0>", [" park", " cat"], "the cat in the\npark", ("cat", "park")),
    ],
)
def test_words_are_neither_glued_nor_parted_where_blanks_belong_to_words(text, spans, expected, shown):
    t5 = Tokenizer(t5_like(), sentinels=20, origin="x")
    result = filled(t5, split_masks(text), generated(t5, *spans))
    assert (result.text, result.spans) == (expected, shown)


@pytest.mark.parametrize(
    ("text", "spans", "expected"),
    [
        ("the <mask> sat", ["cat"], "the cat sat"),
        ("the<mask> sat", [" cat"], "the cat sat"),
        ("  <mask>\n", [" \n the"], "   \n the\n"),
    ],
)
def test_what_a_tokenizer_of_ours_gives_is_put_in_as_it_is(text, spans, expected):
    lines = list(text_lines([sentences(400, seed=1)]))
    ours = Tokenizer(train_tokenizer(lines, pieces=120), sentinels=20, origin="x")
    result = filled(ours, split_masks(text), generated(ours, *spans))
    assert (result.text, result.spans) == (expected, tuple(spans))
