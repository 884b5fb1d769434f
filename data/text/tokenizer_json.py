"""A tokenizer as the `tokenizer.json` of Hugging Face's `tokenizers`, which encodes as ours does or is not written.

What sentencepiece does is said in their parts: its normalizer, blanks written as U+2581, the segmentation of a text as
one. What cannot be said so (other kinds of models) is refused, and so is a result that differs on any of the texts of
`data.text.sample_texts`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as TheirTokenizer

from conf.errors import ConfigError
from data.batch import EOS_ID, PAD_ID, UNK_ID
from data.text.sample_texts import sample_texts
from data.text.segment import scores_of
from data.text.spiece import BLANK, UNIGRAM
from data.text.tokenizer import Tokenizer

FILES = ("spiece.model", "tokenizer.json", "tokenizer_config.json")


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `FILES`; raises ConfigError when transformers would encode otherwise than we do."""
    content = to_theirs(tokenizer).to_str(pretty=True)
    check_equal(tokenizer, read_theirs(content), sample_texts(tokenizer))
    spiece, converted, settings = (folder / name for name in FILES)
    spiece.write_bytes(tokenizer.model)
    converted.write_text(content + "\n", encoding="utf-8")
    pad, eos, unk = (tokenizer.spiece.proto.pieces[token].piece for token in (PAD_ID, EOS_ID, UNK_ID))
    document = {
        # the class that takes tokenizer.json as it is: T5Tokenizer would put its own rules for blanks in their place
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": pad,
        "eos_token": eos,
        "unk_token": unk,
        "extra_ids": tokenizer.sentinels,
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    settings.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def read_theirs(content: str) -> TheirTokenizer:
    """A tokenizer.json as transformers uses it under our tokenizer_config.json."""
    theirs = TheirTokenizer.from_str(content)
    theirs.encode_special_tokens = True  # what `split_special_tokens` does
    return theirs


def to_theirs(tokenizer: Tokenizer) -> TheirTokenizer:
    """The same tokenizer in their parts. Raises ConfigError for models that are not unigram."""
    proto = tokenizer.spiece.proto
    if proto.trainer_spec.model_type != UNIGRAM or proto.trainer_spec.treat_whitespace_as_suffix:
        raise _refusal("a sentencepiece model of another kind", "a unigram model whose words begin with their blank")
    theirs = TheirTokenizer(_model(tokenizer))
    theirs.normalizer = _normalizer(proto)
    if (parts := _pre_tokenizer(proto)) is not None:
        theirs.pre_tokenizer = parts
    theirs.decoder = _decoder(tokenizer)
    theirs.add_special_tokens([proto.pieces[token].piece for token in (PAD_ID, EOS_ID, UNK_ID)])
    # "</s>" in a text is text (`split_special_tokens`), so that sentinels, which are ids wherever they stand, cannot be
    # special.
    numbers = sorted(range(tokenizer.sentinels), key=tokenizer.sentinel_id)
    theirs.add_tokens([AddedToken(f"<extra_id_{number}>", normalized=False) for number in numbers])
    eos = proto.pieces[EOS_ID].piece
    theirs.post_processor = processors.TemplateProcessing(
        single=f"$A {eos}", pair=f"$A {eos} $B {eos}", special_tokens=[(eos, EOS_ID)]
    )
    return theirs


def check_equal(tokenizer: Tokenizer, theirs: TheirTokenizer, texts: Iterable[str]) -> None:
    """Raise ConfigError naming the first text whose ids, or whose text when they are decoded, differ."""
    for text in texts:
        ours = tokenizer.encode_with_sentinels(text).tolist()
        got = theirs.encode(text, add_special_tokens=False).ids
        if got != ours:
            raise _refusal(f"ids {_from_first_difference(got, ours)} in transformers for {text!r}", "the same")
        back = theirs.decode(ours, skip_special_tokens=False)
        if UNK_ID not in ours and back != tokenizer.decode(ours):
            raise _refusal(f"{back!r} in transformers for the ids of {text!r}", repr(tokenizer.decode(ours)))


def _from_first_difference(got: list[int], ours: list[int]) -> str:
    place = next((n for n, (a, b) in enumerate(zip(got, ours, strict=False)) if a != b), min(len(got), len(ours)))
    return f"{got[place : place + 8]} from place {place} on for our {ours[place : place + 8]}"


def _refusal(got: str, needs: str) -> ConfigError:
    return ConfigError(
        "tokenizer",
        got=got,
        needs=f"{needs}: transformers would give the model other ids than it was trained on",
        hint="--no-tokenizer to export the weights alone",
    )


def _model(tokenizer: Tokenizer) -> models.Unigram:
    """Pieces and scores; those that text never becomes are worth less than any other way to write them."""
    proto = tokenizer.spiece.proto
    scores = scores_of(proto)
    vocab = [(piece.piece, scores.pieces.get(piece.piece, scores.never)) for piece in proto.pieces]
    for number, token in enumerate(tokenizer.spiece.sentinels):  # special tokens of theirs have the ids of their names
        vocab[token] = (f"<extra_id_{number}>", scores.never)
    return models.Unigram(vocab, unk_id=UNK_ID, byte_fallback=proto.trainer_spec.byte_fallback)


def _normalizer(proto: Any) -> normalizers.Normalizer:
    spec = proto.normalizer_spec
    if spec.add_dummy_prefix != spec.remove_extra_whitespaces:
        raise _refusal("a tokenizer that adds or drops blanks at the ends of a text", "one that does both or neither")
    steps: list[Any] = []
    if spec.precompiled_charsmap:
        if "nfkc" in spec.name:
            # Their reading of the map forgets marks behind a letter that it changes; composed first, few are left.
            steps.append(normalizers.NFKC())
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Replace(Regex(r" +\z"), "")]
    steps.append(normalizers.Replace(" ", BLANK))
    if (marks := _marks(proto)) and not proto.trainer_spec.byte_fallback:
        known = set("".join(scores_of(proto).pieces))
        other = next(chr(code) for code in range(0xE000, 0xF900) if chr(code) not in known)  # as unknown as the mark
        steps.append(normalizers.Replace(Regex(marks), other))
    return normalizers.Sequence(steps)


def _pre_tokenizer(proto: Any) -> pre_tokenizers.PreTokenizer | None:
    steps: list[Any] = []
    if proto.normalizer_spec.add_dummy_prefix:
        # "first": a blank before the text, and none behind a sentinel
        steps.append(pre_tokenizers.Metaspace(replacement=BLANK, prepend_scheme="first", split=False))
    if (marks := _marks(proto)) and proto.trainer_spec.byte_fallback:
        steps.append(pre_tokenizers.Split(Regex(marks), "isolated"))  # spelled in bytes wherever it is cut
    return pre_tokenizers.Sequence(steps) if steps else None


def _marks(proto: Any) -> str | None:
    """A pattern for an unknown character in the name of each piece that text never becomes, and there alone.

    Text like "</s>" or "<0x41>" is no such piece: to them, where its characters are known, it is worth less than these;
    an unknown one must be kept from it.
    """
    scores = scores_of(proto).pieces
    known = set("".join(scores))
    parts = []
    for name in (piece.piece for piece in proto.pieces if piece.piece not in scores):
        place = next((n for n, letter in enumerate(name) if letter not in known), None)
        if place is not None:
            before, here, after = map(re.escape, (name[:place], name[place], name[place + 1 :]))
            parts.append(f"(?<={before}){here}(?={after})")
    return "|".join(parts) or None


def _decoder(tokenizer: Tokenizer) -> decoders.Decoder:
    steps: list[Any] = [decoders.ByteFallback(), decoders.Replace(BLANK, " "), decoders.Fuse()]
    if tokenizer.adds_blank:
        steps.append(decoders.Strip(" ", 1, 0))
    return decoders.Sequence(steps)
