"""The exported tokenizer, by Hugging Face's `tokenizers`: the same ids on every text, or a refusal that names one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers

from conf.errors import ConfigError
from data.text.sample_texts import CODE, PROSE, sample_texts
from data.text.spiece import BLANK, CONTROL, USER_DEFINED
from data.text.tokenizer import Tokenizer
from data.text.tokenizer_json import FILES, check_equal, read_theirs, to_theirs, write_tokenizer
from data.text.train_tokenizer import text_lines, train_tokenizer
from tests.data.text.models import t5_like, with_pieces

LINES = list(text_lines([*PROSE * 3, *CODE * 3]))
MODELS = {
    "ours": lambda: train_tokenizer(LINES, pieces=340),
    "ours_bytes": lambda: train_tokenizer(LINES, pieces=560, byte_fallback=True),
    "ours_without_angles": lambda: train_tokenizer(list(text_lines(PROSE * 3)), pieces=520, byte_fallback=True),
    "ours_of_few_letters": lambda: train_tokenizer(["ab ba abab aba b a"] * 99, pieces=12),
    "t5": t5_like,
    "t5_of_many_scripts": lambda: t5_like(LINES, vocab_size=330),
    "mt5": lambda: with_pieces(t5_like(), [(f"{BLANK}<extra_id_{k}>", USER_DEFINED) for k in range(19, -1, -1)]),
    "scattered": lambda: with_pieces(t5_like(), [(f"<extra_id_{k}>", CONTROL) for k in (3, 0, 2, 1)]),
    "identity": lambda: t5_like(
        normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_ids_and_texts_are_the_same(name: str, tmp_path: Path) -> None:
    ours = Tokenizer(MODELS[name](), sentinels=4 if name == "scattered" else 20, origin="x")
    write_tokenizer(ours, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    assert (tmp_path / "spiece.model").read_bytes() == ours.model
    theirs = read_theirs((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    texts = list(sample_texts(ours))
    assert len(texts) > 700
    check_equal(ours, theirs, texts)  # the file, not what it was written from
    assert theirs.get_vocab_size() == ours.size
    for number in range(ours.sentinels):
        assert theirs.token_to_id(f"<extra_id_{number}>") == ours.sentinel_id(number)
    assert theirs.encode("the cat").ids == [*ours.encode("the cat").tolist(), 1]
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (settings["extra_ids"], settings["eos_token"]) == (ours.sentinels, "</s>")


def test_a_difference_is_refused_with_the_first_text_that_has_it(tmp_path: Path) -> None:
    ours = Tokenizer(MODELS["ours"](), sentinels=20, origin="x")
    other = to_theirs(Tokenizer(train_tokenizer(LINES, pieces=300), sentinels=20, origin="x"))
    with pytest.raises(
        ConfigError, match=r"tokenizer: got \"ids \[.*\] from place 0 on for our .* for 'alone'.*--no-tokenizer"
    ):
        check_equal(ours, other, ["alone", "jumps over"])
    # a line feed that is a piece is not normalised by sentencepiece, and is by theirs
    lines = t5_like(user_defined_symbols=["\n"])
    with pytest.raises(ConfigError, match="tokenizer: got "):
        write_tokenizer(Tokenizer(lines, sentinels=20, origin="x"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_is_decoded_is_compared_as_well() -> None:
    ours = Tokenizer(t5_like(), sentinels=20, origin="x")
    theirs = to_theirs(ours)
    theirs.decoder = tokenizers.decoders.Fuse()
    with pytest.raises(ConfigError, match=r"in transformers for the ids of 'the cat'"):
        check_equal(ours, theirs, ["the cat"])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "bpe"}, "another kind"),
        ({"treat_whitespace_as_suffix": True}, "another kind"),
        ({"add_dummy_prefix": False}, "adds or drops blanks"),
        ({"remove_extra_whitespaces": False}, "adds or drops blanks"),
    ],
)
def test_models_that_cannot_be_said_in_their_parts_are_refused(changes: dict, reason: str, tmp_path: Path) -> None:
    other = Tokenizer(t5_like(**changes), sentinels=20, origin="x")
    assert other.decode(other.encode("the cat")).strip() == "the cat"
    with pytest.raises(ConfigError, match=f"{reason}.*--no-tokenizer"):
        write_tokenizer(other, tmp_path)
