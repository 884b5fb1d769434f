"""Training of a sentencepiece unigram model on a deterministic sample of lines."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import sentencepiece

from conf.errors import DataError
from data.batch import EOS_ID, PAD_ID, UNK_ID
from data.order import fold_key, permute

TRAINER_VERSION = 1  # part of the cache key: raise it when anything below changes what is learned
_THREADS = 2  # fixed: the learned scores depend on how sums are split over threads
_MAX_LINE_CHARS = 4_000
_SAMPLE_KEY = fold_key(0x70696563, TRAINER_VERSION)


def text_lines(documents: Iterable[str]) -> Iterator[str]:
    """Lines that are not blank, cut to a length the trainer accepts, without what it reserves."""
    for document in documents:
        for line in document.split("\n"):
            if line.strip():
                yield line[:_MAX_LINE_CHARS].replace("\0", "")


def sample_lines(lines: Iterable[str], *, total: int, wanted: int) -> Iterator[str]:
    """At most `wanted` of `total` lines, chosen by a keyed permutation of their numbers, in their order."""
    if total <= wanted:
        yield from lines
        return
    chosen = np.zeros(total, dtype=bool)
    chosen[permute(np.arange(wanted), total, _SAMPLE_KEY)] = True
    for number, line in enumerate(lines):
        if number < total and chosen[number]:  # whoever gives more tells it at their end
            yield line


def train_tokenizer(
    lines: Iterable[str], *, pieces: int, character_coverage: float = 0.9995, byte_fallback: bool = False
) -> bytes:
    """The .model file of a unigram model with exactly `pieces` pieces, T5's special ids among them.

    Nothing is normalised and no space is added or removed, because indentation and line breaks carry meaning in
    source code: newline and tab are pieces of their own, runs of spaces are learned, so that decode(encode(x)) == x
    wherever no unknown character occurs. With `byte_fallback` none is unknown.

    Raises DataError when the text supports no such model, with a number of pieces that it does support.
    """
    model, faults = io.BytesIO(), list[DataError]()
    # Only where it is wanted: a model file says what its trainer was told, and equal text gives equal bytes.
    fallback: dict[str, Any] = {"byte_fallback": True} if byte_fallback else {}
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_noting(lines, faults),
            model_writer=model,
            model_type="unigram",
            vocab_size=pieces,
            pad_id=PAD_ID,
            eos_id=EOS_ID,
            unk_id=UNK_ID,
            bos_id=-1,
            user_defined_symbols=["\n", "\t"],
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            character_coverage=character_coverage,
            **fallback,
            max_sentence_length=4 * _MAX_LINE_CHARS,
            num_threads=_THREADS,
            shuffle_input_sentence=False,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise (faults[0] if faults else _explain(error, pieces)) from error
    return model.getvalue()


def _noting(lines: Iterable[str], faults: list[DataError]) -> Iterator[str]:
    """`lines`, whose error the trainer would give as one of its own."""
    try:
        yield from lines
    except DataError as error:
        faults.append(error)
        raise


def _explain(error: Exception, pieces: int) -> DataError:
    text = str(error)
    if most := re.search(r"value <= (\d+)", text):
        return DataError(
            f"data.tokenizer_vocab: got {pieces}; the training text supports at most {most[1]} pieces; try "
            f"data.tokenizer_vocab={most[1]} or more text"
        )
    if least := re.search(rf"required_chars\. {pieces} vs (\d+)", text):
        return DataError(
            f"data.tokenizer_vocab: got {pieces}; needs at least {least[1]}, a piece for each character that is not "
            f"rare (and for each byte, with data.byte_fallback); try data.tokenizer_vocab={least[1]} or more, or a "
            "smaller data.character_coverage"
        )
    if "sentences_.empty()" in text:
        return DataError("the training text has no line but blank ones; give other text in data.files")
    return DataError(f"sentencepiece cannot train data.tokenizer_vocab={pieces} pieces on this text: {text.strip()}")
