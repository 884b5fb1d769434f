"""A sentencepiece model file, opened: its kinds of pieces, its own sentinels, and text as a start or as a middle.

In T5's models a text begins with a blank that was not typed, and blanks at its ends are lost. Behind a sentinel neither
holds: there a word goes on, or a new one begins with the blank that was typed.
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from conf.errors import DataError
from data.batch import EOS_ID, PAD_ID, UNK_ID

BLANK = "\u2581"  # what sentencepiece writes for a blank
SENTINEL = re.compile(r"<extra_id_(0|[1-9][0-9]{0,8})>")
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # kinds of pieces
UNIGRAM = 1  # a kind of model

Processor = sentencepiece.SentencePieceProcessor
_PROTO: Any = sentencepiece_model_pb2  # its classes are made when it is imported
_LEAST_BLOCK = 2  # a learned piece that happens to read like one sentinel makes no block of them


class SentencePieceModel:
    """The parsed model and what encodes with it. Pieces that are sentinels are never made of text."""

    def __init__(self, content: bytes, origin: str) -> None:
        """`content` of a .model file; `origin` names it in errors.

        Raises DataError when it is no sentencepiece model, not in T5's layout, or its sentinels have gaps.
        """
        processor = _load(content, origin)
        _check_layout(processor, origin)
        self.proto = _PROTO.ModelProto.FromString(content)
        if not all(isinstance(piece.piece, str) for piece in self.proto.pieces):  # bytes that are no UTF-8
            raise DataError(f"{origin}: damaged: a piece is no UTF-8 text; restore the file it was copied from")
        self.sentinels = _own_sentinels(self.proto.pieces, origin)  # ids of <extra_id_0>, .. among the pieces
        for token in self.sentinels:
            self.proto.pieces[token].type = UNUSED
        self.start = self._processor() if self.sentinels else processor

    @property
    def adds_blank(self) -> bool:
        """Whether a blank is put before a text."""
        return self.proto.normalizer_spec.add_dummy_prefix

    @property
    def drops_blanks(self) -> bool:
        """Whether blanks at the ends of a text are lost, and several become one."""
        return self.proto.normalizer_spec.remove_extra_whitespaces

    @cached_property
    def verbatim(self) -> Processor:
        """Neither adds nor drops blanks."""
        if not (self.adds_blank or self.drops_blanks):
            return self.start
        return self._processor(add_dummy_prefix=False, remove_extra_whitespaces=False)

    @cached_property
    def _new_word(self) -> Processor:
        """For text that begins with a blank, where blanks are dropped."""
        return self.start if self.adds_blank else self._processor(add_dummy_prefix=True)

    @cached_property
    def _same_word(self) -> Processor:
        """For text that goes on, where blanks at the end are dropped."""
        return self._processor(add_dummy_prefix=False) if self.adds_blank else self.start

    def inside(self, text: str) -> Processor:
        """What encodes `text` behind a sentinel."""
        if not self.drops_blanks:
            return self.verbatim
        return self._new_word if self.verbatim.normalize(text).startswith(BLANK) else self._same_word

    def _processor(self, **changes: bool) -> Processor:
        """A processor of the model with its normalizer changed."""
        proto = _PROTO.ModelProto()
        proto.CopyFrom(self.proto)
        for name, value in changes.items():
            setattr(proto.normalizer_spec, name, value)
        return _load(proto.SerializeToString(), "the tokenizer")


def _load(content: bytes, origin: str) -> Processor:
    processor = Processor()
    try:
        loaded = processor.LoadFromSerializedProto(content)
    except (RuntimeError, ValueError) as error:
        raise DataError(f"{origin}: not a sentencepiece model ({error}); give a .model file") from error
    if not loaded:
        raise DataError(f"{origin}: not a sentencepiece model; give a .model file")
    return processor


def _check_layout(processor: Processor, origin: str) -> None:
    got = (processor.pad_id(), processor.eos_id(), processor.unk_id())
    if got != (PAD_ID, EOS_ID, UNK_ID):
        raise DataError(
            f"{origin}: pad, eos, unk have ids {got}; needs {(PAD_ID, EOS_ID, UNK_ID)} as in T5's spiece.model; train "
            "it with --pad_id=0 --eos_id=1 --unk_id=2 --bos_id=-1"
        )


def _own_sentinels(pieces: Any, origin: str) -> tuple[int, ...]:
    """Ids of <extra_id_0>, .. among the pieces, with or without a blank before them; mostly none is there.

    They are pieces that were declared, in any order; or, of whatever kind, the last ones, counting down as mT5's do.
    """
    numbers: dict[int, int] = {}  # id -> number
    for token, piece in enumerate(pieces):
        if "<extra_id_" in piece.piece and (match := SENTINEL.fullmatch(piece.piece.removeprefix(BLANK))):
            numbers[token] = int(match[1])
    declared = {token: k for token, k in numbers.items() if pieces[token].type in (CONTROL, USER_DEFINED)}
    if not declared:
        last = len(pieces) - 1
        count = 0
        while numbers.get(last - count) == count:
            count += 1
        return tuple(range(last, last - count, -1)) if count >= _LEAST_BLOCK else ()
    ids = {k: token for token, k in declared.items()}
    missing = next((k for k in range(len(ids)) if k not in ids), None)
    if missing is not None or len(ids) < len(declared):
        wrong = f"<extra_id_{missing}> is missing" if missing is not None else "two have the same number"
        raise DataError(
            f"{origin}: {len(declared)} of its pieces are sentinels, but {wrong}; needs <extra_id_0>, <extra_id_1>, .. "
            "without gaps, each once, or none; train it with all of them as --user_defined_symbols, or without"
        )
    return tuple(ids[k] for k in range(len(ids)))
