"""The sentencepiece tokenizer: text to ids and back, with T5's sentinels.

Layout (T5's): pad 0, EOS 1, unknown 2, pieces up to `pieces`, then sentinels; <extra_id_k> is `size - 1 - k`. A model
that has sentinels among its pieces keeps those, wherever they are, and gets no others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from conf.errors import ConfigError, DataError
from conf.reading.paths import user_path
from conf.safety.regular import read_regular
from data.batch import EOS_ID, PAD_ID, UNK_ID
from data.files import sha256_bytes
from data.text.segment import Segmenter
from data.text.spiece import SENTINEL, UNIGRAM, Processor, SentencePieceModel
from data.text.vocabulary import Vocabulary, appended


class Tokenizer:
    """A sentencepiece model in T5's layout plus `sentinels` extra ids."""

    def __init__(self, model: bytes, *, sentinels: int, origin: str) -> None:
        """`model` is the content of a .model file; `origin` names it in errors; `sentinels` is data.sentinels.

        Raises DataError as `SentencePieceModel`, ConfigError when the model has another number of sentinels of its own.
        """
        self.model = model
        self.spiece = SentencePieceModel(model, origin)
        self.pieces: int = len(self.spiece.proto.pieces)
        own = self.spiece.sentinels
        if own and sentinels not in (0, len(own)):
            raise ConfigError(
                "data.sentinels",
                got=sentinels,
                needs=f"{len(own)}, the sentinels among the pieces of {origin} (<extra_id_0> is id {own[0]}), or 0",
                hint=f"data.sentinels={len(own)}",
            )
        self.vocabulary = Vocabulary(self.pieces, own) if own else appended(self.pieces, sentinels)

    @classmethod
    def from_file(cls, path: Path, *, sentinels: int) -> Tokenizer:
        """Read a .model file. Raises DataError when it is missing, not sentencepiece or not in T5's layout."""
        try:
            content = read_regular(user_path(path))
        except OSError as error:
            raise DataError(
                f"{path}: cannot read this tokenizer ({error.strerror}); set data.tokenizer to a sentencepiece .model "
                "file, or to null to train one"
            ) from error
        return cls(content, sentinels=sentinels, origin=str(path))

    @property
    def size(self) -> int:
        """Ids in use: pieces and sentinels."""
        return self.vocabulary.size

    @property
    def sentinels(self) -> int:
        """How many sentinels there are."""
        return len(self.vocabulary.sentinels)

    @property
    def adds_blank(self) -> bool:
        """Whether a blank is put before a text, which is dropped when it is decoded."""
        return self.spiece.adds_blank

    @property
    def drops_blanks(self) -> bool:
        """Whether blanks at the ends of a text are lost."""
        return self.spiece.drops_blanks

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the model file."""
        return sha256_bytes(self.model)

    @cached_property
    def _numbers(self) -> dict[int, int]:
        return {token: number for number, token in enumerate(self.vocabulary.sentinels)}

    @cached_property
    def _segmenter(self) -> Segmenter | None:
        """None for models of other kinds, whose ids are sentencepiece's."""
        proto = self.spiece.proto
        return Segmenter(proto) if proto.trainer_spec.model_type == UNIGRAM else None

    def sentinel_id(self, k: int) -> int:
        """Id of <extra_id_k>."""
        if not 0 <= k < self.sentinels:
            raise DataError(
                f"<extra_id_{k}> does not exist: there are {self.sentinels} sentinels; use a smaller number"
            )
        return self.vocabulary.sentinels[k]

    def sentinel_number(self, token: int) -> int | None:
        """k where `token` is the id of <extra_id_k>, else None."""
        return self._numbers.get(token)

    def encode(self, text: str) -> NDArray[np.int64]:
        """Ids of `text`, without EOS. <extra_id_k> in the text stays text; see `encode_with_sentinels`.

        Exact ties between segmentations are decided as transformers does (`data.text.segment`), and so differ here and
        there from those of prepared text (`encode_documents`).
        """
        return np.asarray(self._encode(text, self.spiece.start), dtype=np.int64)

    def encode_documents(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of several texts, without EOS, as sentencepiece gives them."""
        return self.spiece.start.encode(list(texts), num_threads=1)

    def encode_with_sentinels(self, text: str) -> NDArray[np.int64]:
        """Like `encode`, but each literal <extra_id_k> becomes the sentinel's id.

        Text behind a sentinel begins a new word if a blank is there, and else goes on with one.
        """
        ids, place = [], 0
        for match in SENTINEL.finditer(text):
            ids += self._encode_part(text[place : match.start()], first=place == 0)
            ids.append(self.sentinel_id(int(match[1])))
            place = match.end()
        return np.asarray([*ids, *self._encode_part(text[place:], first=place == 0)], dtype=np.int64)

    def _encode_part(self, text: str, *, first: bool) -> list[int]:
        return self._encode(text, self.spiece.start if first else self.spiece.inside(text))

    def _encode(self, text: str, processor: Processor) -> list[int]:
        if self._segmenter is None:
            return processor.encode(text)
        return self._segmenter.ids(processor.normalize(text))

    def unknown_characters(self, text: str) -> Counter[str]:
        """The characters of `text` that are unknown, as often as they occur."""
        pieces, ids = (self.spiece.start.encode(text, out_type=kind) for kind in (str, int))
        unknown: Counter[str] = Counter()
        for piece, token in zip(pieces, ids, strict=True):
            if token == UNK_ID:
                unknown.update(piece)
        return unknown

    def decode(self, ids: ArrayLike, *, inside: bool = False) -> str:
        """Text of `ids`: sentinels as <extra_id_k>, padding and EOS as nothing.

        A blank is dropped from the start of a text if the tokenizer puts one there, but not behind a sentinel, where
        `ids` are with `inside`.

        Raises:
            DataError: an id is outside the vocabulary (for example a padded row of the model's embedding).
        """
        text: list[str] = []
        run: list[int] = []
        processor = self.spiece.verbatim if inside else self.spiece.start
        for token in np.asarray(ids, dtype=np.int64).ravel().tolist():
            if not 0 <= token < self.size:
                raise DataError(f"id {token} is outside the vocabulary of {self.size}; mask ids from {self.size} on")
            number = self.sentinel_number(token)
            if number is not None:
                text += [processor.decode(run), f"<extra_id_{number}>"]
                processor, run = self.spiece.verbatim, []
            elif token not in (PAD_ID, EOS_ID):
                run.append(token)
        return "".join([*text, processor.decode(run)])
