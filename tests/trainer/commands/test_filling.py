"""From text with masks to encoder ids and from generated ids back to spans."""

import pytest

from conf.compose import compose
from conf.errors import ConfigError
from data.tasks.span_corruption import parse_spans
from trainer.commands.filling import encode_masked, has_mask, split_masks, untrained_masks


class Letters:
    """A tokenizer of one id per character: chr(97) is 10; ids 90..99 are sentinels, <extra_id_0> the last."""

    sentinels = 10
    size = 100

    def encode(self, text):
        return [ord(letter) - 87 for letter in text]

    def decode(self, ids):
        return "".join(chr(token + 87) for token in ids)

    def sentinel_id(self, index):
        return self.size - 1 - index


def test_masks_split_text():
    assert split_masks("a<mask>b<extra_id_3>c") == ["a", "b", "c"]
    assert split_masks("<mask>") == ["", ""]
    assert has_mask("x <mask>")
    assert not has_mask("x < mask >")


def test_text_without_a_mask_is_refused_with_an_example():
    with pytest.raises(ConfigError, match="<mask>"):
        split_masks("nothing to fill")


def test_encoding_numbers_sentinels_in_order_and_ends():
    assert encode_masked(Letters(), "a<mask>bc<mask>") == [10, 99, 11, 12, 98, 1]


def test_too_many_masks():
    with pytest.raises(ConfigError, match="at most 10"):
        encode_masked(Letters(), "<mask>" * 11)


def test_more_masks_than_trained_spans_are_pointed_out():
    one_span, three_spans = compose([]).data, compose(["data.encoder_length=64"]).data
    assert untrained_masks(["a <mask>", "<mask> b"], one_span) is None
    assert "3 masks" in (untrained_masks(["a <mask>", "<mask> b <mask> c <mask>"], one_span) or "")
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
